# shellcheck shell=bash
# What the scripts share. Sourced at their top, with the working directory at the project's root.

# A toolchain from rustup that this shell does not know of.
if ! command -v cargo >/dev/null && [[ -x $HOME/.cargo/bin/cargo ]]; then
    PATH=$HOME/.cargo/bin:$PATH
fi

# Colours for people, none for files.
# shellcheck disable=SC2034 # used by the scripts that source this
if [[ -t 1 && -z ${NO_COLOR:-} ]]; then
    bold=$'\e[1m' red=$'\e[31m' green=$'\e[32m' plain=$'\e[0m'
else
    bold='' red='' green='' plain=''
fi

# What builds the Debian package.
# shellcheck disable=SC2034 # used by the scripts that source this
readonly CARGO_DEB=3.8.0

# What checks licences, sources and known vulnerabilities.
# shellcheck disable=SC2034 # used by the scripts that source this
readonly CARGO_DENY=0.20.2

# Bundles the reactor's page for the binary to embed, if something of it is newer than the bundle. In the project's root.
bundle_page() {
    local page=src/web/page
    if [[ -e $page/dist/index.html && -e $page/node_modules ]] &&
        [[ -z $(find $page -maxdepth 1 -type f -newer $page/dist/index.html -print -quit) ]]; then
        return
    fi
    command -v npm >/dev/null || {
        echo "npm is missing; it is needed to bundle the reactor's page: run scripts/setup first" >&2
        return 1
    }
    echo "bundling the reactor's page"
    (cd $page && npm ci --ignore-scripts --no-fund --no-audit --loglevel=error && npm run --silent build)
}

# Builds the binary that ships, with its page. Neither this folder nor that of the crates is named in it, not even by the hashes of what the
# linker saw: the same source gives the same bytes anywhere (scripts/reproduce).
build_release() {
    bundle_page || return
    RUSTFLAGS="${RUSTFLAGS:-} --remap-path-prefix=$PWD=lb --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=cargo" \
        cargo build --release --locked --bin lb
}

# unit PREFIX: prints the systemd unit for a binary in PREFIX/bin.
unit() {
    sed "s|^ExecStart=/usr/local/bin/lb |ExecStart=${1%/}/bin/lb |" 'scripts/systemd/lb@.service'
}

# The directory of what `cargo` builds.
target_dir() {
    cargo metadata --locked --offline --no-deps --format-version 1 | sed 's/.*"target_directory":"\([^"]*\)".*/\1/'
}

# foreign_libraries BINARY: prints the shared libraries it needs that are not part of the C library or the compiler's
# own runtime, both of which every Debian has; nothing when it runs anywhere.
foreign_libraries() {
    ldd "$1" | awk '{print $1}' |
        grep -Ev '(^|/)(linux-vdso|libc|libm|libdl|libpthread|librt|libgcc_s|ld-linux[-a-z0-9_]*)\.so' || true
}

# cargo_tool NAME VERSION: makes a tool from crates.io available, built once and kept with what cargo builds. Without
# optimisation: they run for seconds, and would take minutes to build.
cargo_tool() {
    local folder
    folder=$(target_dir)/tools
    PATH=$folder/bin:$PATH
    [[ -x $folder/bin/$1 ]] && return
    echo "building $1 $2"
    CARGO_PROFILE_DEV_DEBUG=false cargo install --quiet --locked --debug --root "$folder" --version "$2" "$1"
}
