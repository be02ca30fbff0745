#!/bin/busybox sh
# What stands for an init system: network, faked sysfs where the image has one, one ssh server.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
B=/bin/busybox
$B mount -t tmpfs tmpfs /run; $B mkdir -p /run/sshd /dev/pts /dev/shm
$B mount -t devpts devpts /dev/pts; $B mount -t tmpfs tmpfs /tmp; $B mount -t tmpfs tmpfs /dev/shm
$B chmod 1777 /tmp /dev/shm
$B ip link set lo up; $B ip addr add 10.0.2.15/24 dev eth0; $B ip link set eth0 up
$B hostname board
if $B grep -q board.first /proc/cmdline; then
    python3 /opt/used_before.py; $B sync; $B mount -o remount,ro /; $B poweroff -f
fi
for folder in devices/system/cpu class/thermal; do
    # a copy in memory: writable, and as shipped again after each boot
    [ -d /opt/sys/$folder ] || continue
    $B mkdir -p /run/sys/$folder; $B cp -a /opt/sys/$folder/. /run/sys/$folder
    $B mount --bind /run/sys/$folder /sys/$folder
done
if [ -x /usr/sbin/sshd ]; then
    /usr/sbin/sshd -D -e 2>&1 &
else
    [ -f /etc/dropbear/host ] ||
        dropbearconvert openssh dropbear /etc/ssh/ssh_host_ed25519_key /etc/dropbear/host
    /usr/sbin/dropbear -F -E -s -r /etc/dropbear/host -p 22 2>&1 &
fi
echo "BOARD up $($B cut -d' ' -f1 /proc/uptime)"
while :; do wait; $B sleep 3600; done
