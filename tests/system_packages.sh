#!/usr/bin/env bash
# Installs what some tests need beside Python, where that needs no password; otherwise those tests say so when they are skipped.
# Nothing that is installed is started: the message broker's package would open a port on all interfaces, and do so again at each boot.
set -uo pipefail

declare -A proof=(  # package → what it brings
  [chromium]=chromium
  [rabbitmq-server]=/usr/lib/rabbitmq/bin/rabbitmq-server
  [faketime]=faketime
  [strace]=strace
)

missing=()
for package in "${!proof[@]}"; do command -v "${proof[$package]}" >/dev/null || missing+=("$package"); done
if [ ${#missing[@]} = 0 ]; then exit 0; fi

if [ "$(id -u)" = 0 ]; then as_root() { "$@"; }
elif sudo -n true 2>/dev/null; then as_root() { sudo -n "$@"; }
else echo "Left out: ${missing[*]} (needs root; install it yourself, or its tests are skipped)"; exit 0; fi
command -v apt-get >/dev/null || { echo "Left out: ${missing[*]} (no apt-get here; install it yourself, or its tests are skipped)"; exit 0; }

policy=/usr/sbin/policy-rc.d  # asked by Debian's packages whether they may start a service
if [ ! -e "$policy" ]; then
  trap 'as_root rm -f "$policy"' EXIT
  printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null && as_root chmod 755 "$policy"
fi
echo "Installing ${missing[*]}"
as_root apt-get update -qq >/dev/null
for package in "${missing[@]}"; do
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package" >/dev/null \
    || echo "Left out: $package (apt-get could not install it)"
done
if command -v systemctl >/dev/null && [[ " ${missing[*]} " == *" rabbitmq-server "* ]]; then
  as_root systemctl disable --quiet rabbitmq-server 2>/dev/null || true
fi
