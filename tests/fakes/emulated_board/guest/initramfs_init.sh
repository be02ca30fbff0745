#!/bin/busybox sh
# First process of the emulated board: load the virtio drivers, mount the disk, go on there.
B=/bin/busybox
$B mount -t proc proc /proc; $B mount -t sysfs sys /sys; $B mount -t devtmpfs dev /dev
while read -r module; do $B insmod "/mod/$module"; done < /mod/order
i=0; while [ ! -b /dev/vda ] && [ $i -lt 100 ]; do $B sleep 0.1; i=$((i + 1)); done
$B mount -t ext4 /dev/vda /newroot || { echo "BOARD no disk"; $B poweroff -f; }
for folder in dev proc sys; do $B mount --move /$folder /newroot/$folder; done
exec $B switch_root /newroot /board-init
