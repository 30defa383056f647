# Sourced by the scripts that build libalize, behind lib.sh.
# shellcheck shell=bash

# cpp_packages PACKAGE...: what a Debian machine needs to build libalize and its tests, and these
cpp_packages() {
    local missing=() package
    for package in g++ cmake ninja-build nlohmann-json3-dev doctest-dev "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2> /dev/null)" = installed ] || missing+=("$package")
    done
    [ ${#missing[@]} = 0 ] || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${missing[@]}" > /dev/null; }
}

# cpp_build FOLDER OPTION...: libalize, its back-ends and tests against the OpenVINO of .venv
cpp_build() {
    local site
    site=$(.venv/bin/python -c 'from importlib.util import find_spec; print(find_spec("openvino").origin)')
    site=${site%/openvino/__init__.py} # not where this environment installs: it may stand over another
    cmake -G Ninja -S runtimes/cpp -B "$1" -DALIZE_TESTS=ON -DOpenVINO_DIR="$site/openvino/cmake" \
        -DALIZE_TOKENIZERS="$site/openvino_tokenizers/lib/libopenvino_tokenizers.so" "${@:2}" > /dev/null
    cmake --build "$1" -j "${JOBS:-2}"
}
