# Unpack a Python. $1: check or unpack, $2: work folder, $3: its folder, $4: blob of the tar.
# Says "ok VERSION", "corrupt", or what is wrong. A folder with its final name is whole.
LC_ALL=C
export LC_ALL
umask 077
run() { "$3/bin/python3" -I -B -c 'import sys; print("ok", sys.version.split()[0])' 2>&1 | tail -n 1; }
if [ -x "$3/bin/python3" ]; then
    run "$@"
    exit 0
fi
[ "$1" = unpack ] || { echo missing; exit 0; }
tar="$2/blobs/$4"
if command -v sha256sum >/dev/null 2>&1; then
    sum=$(sha256sum "$tar" | cut -d' ' -f1)
    [ "$sum" = "$4" ] || { rm -f "$tar"; echo corrupt; exit 0; }
fi
part="$3.part"
rm -rf "$part"
mkdir "$part" || exit 1
if ! gzip -dc "$tar" | tar -xf - -C "$part"; then
    rm -rf "$part"
    exit 1
fi
sync -f "$part" 2>/dev/null || sync
answer=$(run x x "$part")
case $answer in
"ok "*)
    mv "$part" "$3" && rm -f "$tar"
    for old in "$2"/python-*.part; do [ -d "$old" ] && rm -rf "$old"; done
    ;;
*) rm -rf "$part" ;;
esac
echo "$answer"
