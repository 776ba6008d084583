#!/bin/sh
# Unpack Debian packages, with what they depend on and this machine lacks, below a folder:
#   unpack_debian.sh FOLDER PACKAGE...
# Nothing is installed, nothing is started, no root is needed. Where there is no apt, the programs have to be
# on PATH; the benchmarks say so when they are not.
set -eu
folder=$1
shift
if ! command -v apt-get >/dev/null; then
  echo "no apt-get here: install $* yourself, so that they are on PATH" >&2
  exit 0
fi
# A machine that was never asked for a package knows of none yet; only root can tell it.
if ! apt-cache show "$@" >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
  apt-get update --quiet=2
fi
missing=$(apt-get install --simulate --no-install-recommends "$@" | awk '/^Inst/ {print $2}')
if [ -z "$missing" ]; then
  exit 0
fi
mkdir -p "$folder"
cd "$folder"
# shellcheck disable=SC2086  # one word per package
apt-get download --quiet=2 --option APT::Sandbox::User=root $missing
for package in *.deb; do
  dpkg-deb --extract "$package" .
  rm "$package"
done
