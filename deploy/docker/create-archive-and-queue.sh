#!/bin/sh
# Run by LocalStack when its services are up: the bucket and the queue that the daemons are told of by the same variables.
set -eu
# Versioned as in production, where that is what brings a deleted object back.
awslocal --region "$AWS_REGION" s3api create-bucket --bucket "$ARCHIVE_BUCKET"
awslocal --region "$AWS_REGION" s3api put-bucket-versioning --bucket "$ARCHIVE_BUCKET" \
    --versioning-configuration Status=Enabled
awslocal --region "$AWS_REGION" sqs create-queue --queue-name "${QUEUE_URL##*/}" --attributes FifoQueue=true
