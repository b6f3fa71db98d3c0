# Run by `unshare` as the first process of its own namespaces, which systemd then takes over. Arguments: a folder with what goes to
# /etc, which is also for logs, and the folder with the two programs. Whatever systemd could write to is put out of its reach first:
# all mounts here are this namespace's own.
set -eu
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mkdir /run/test /run/etc /run/etc-work /run/bin /run/bin-work
mount --bind "$1" /run/test
mount -t overlay overlay -o lowerdir=/etc,upperdir=/run/etc,workdir=/run/etc-work /etc
mount -t overlay overlay -o lowerdir=/usr/bin,upperdir=/run/bin,workdir=/run/bin-work /usr/bin
for program in importer transformer; do
    touch "/usr/bin/$program"
    mount --bind "$2/$program" "/usr/bin/$program"
done
# The last three: of the host's units none is known here, nor made.
for folder in /tmp /var/tmp /var/cache /etc/systemd/system /usr/lib/systemd/system /usr/lib/systemd/system-generators; do
    mount -t tmpfs tmpfs "$folder"
done
cp -r /run/test/etc/. /etc/
# Only its own cgroup, whichever way the host mounts them, and no setting of the kernel.
umount -R /sys/fs/cgroup
mount -o remount,bind,ro /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
mount --bind /run/test/systemd.log /dev/kmsg
# Among its own, systemd passes mounts on: credentials reach a unit that way.
mount --make-rshared /
exec env -i PATH="$PATH" container=test /usr/lib/systemd/systemd --system --unit=test.target --log-target=kmsg --show-status=no
