"""LocalStack 4.4, with a conditional PUT as S3 has it, and on loopback alone.

Its lock is per key and version, so in a versioned bucket two writers with `If-None-Match: *` can both win a number
(26 of 200 keys with four writers; none of 200 with this lock per key). And of GATEWAY_LISTEN it takes only the port.
"""

import functools
import runpy
import threading

from localstack.services.s3 import provider
from twisted.internet import endpoints

endpoints.TCP4ServerEndpoint = functools.partial(endpoints.TCP4ServerEndpoint, interface="127.0.0.1")
put_object, locks = provider.S3Provider.put_object, {}


@functools.wraps(put_object)
def one_at_a_time(self, context, request):
    if not request.get("IfNoneMatch"):
        return put_object(self, context, request)
    with locks.setdefault((request["Bucket"], request["Key"]), threading.Lock()):
        return put_object(self, context, request)


provider.S3Provider.put_object = one_at_a_time
runpy.run_module("localstack.runtime.main", run_name="__main__")
