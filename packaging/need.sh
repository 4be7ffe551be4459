# Sourced by the scripts here and in tests/: what they need from the system.
# Debian and Ubuntu, as root or with sudo. Installed packages cost nothing again.

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

installed() {
    dpkg-query -W -f '${db:Status-Status}\n' "$1" 2>/dev/null | grep -qx installed
}

# need PACKAGE...: installs what is missing, or ends the script saying what failed.
need() {
    local missing=() package
    for package in "$@"; do
        installed "$package" || missing+=("$package")
    done
    [ ${#missing[@]} = 0 ] && return
    echo "installing: ${missing[*]}" >&2
    command -v apt-get >/dev/null || {
        echo "this script installs with apt-get; elsewhere install by hand: ${missing[*]}" >&2
        return 1
    }
    as_root apt-get update -qq >&2 || true
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${missing[@]}" </dev/null >&2
}

# want PACKAGE...: as need, but a package that the distribution lacks is left out.
want() {
    local package
    for package in "$@"; do
        installed "$package" || need "$package" ||
            echo "without $package: what needs it is skipped" >&2
    done
}

# Rust of the version that Cargo.toml asks for, and a C compiler for its crates.
need_rust() {
    need gcc libc6-dev make
    command -v cargo >/dev/null || [ ! -f "$HOME/.cargo/env" ] || . "$HOME/.cargo/env"
    command -v cargo >/dev/null || {
        echo "cargo is not on the PATH: install Rust first (rustup.rs)" >&2
        return 1
    }
    local wanted have
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml | head -n1)
    have=$(rustc --version | cut -d' ' -f2)
    [ "$(printf '%s\n' "$wanted" "$have" | sort -V | head -n1)" = "$wanted" ] || {
        echo "Rust $wanted or later is needed, this is $have: rustup update" >&2
        return 1
    }
}
