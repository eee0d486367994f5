#!/bin/sh
# Names what is missing on this machine, with the command that installs it, before anything is downloaded or started.
# Plain sh, because Python may be what is missing. Prints nothing and exits 0 when all is there.
# PYTHON: the interpreter to look at (python3.11).
set -u
PYTHON="${PYTHON:-python3.11}"
# 4.5 GB of packages, 2 GB of data and logs of a demo, and room for pip to unpack.
NEED_DISK_MB=12000
# PostgreSQL, NATS, Ray, twelve service processes, two training workers and a vLLM replica.
NEED_MEMORY_MB=7000
missing=0

lacks() { # what, how to get it
	if [ "$missing" -eq 0 ]; then echo "This machine lacks:" >&2; fi
	missing=$((missing + 1))
	printf '  - %s\n      %s\n' "$1" "$2" >&2
}

apt() { if [ "$(id -u)" -eq 0 ]; then echo "apt-get install -y $*"; else echo "sudo apt-get install -y $*"; fi; }

if ! command -v "$PYTHON" >/dev/null 2>&1; then
	lacks "Python 3.11 ($PYTHON is not on PATH)" "$(apt python3.11 python3.11-venv)   (Debian 12; elsewhere install Python 3.11 and say: make PYTHON=/path/to/python3.11)"
elif ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
	lacks "Python 3.11 ($PYTHON is $("$PYTHON" --version 2>&1))" "$(apt python3.11 python3.11-venv)   then: make PYTHON=python3.11"
elif ! "$PYTHON" -c 'import venv, ensurepip' 2>/dev/null; then
	lacks "the venv module of Python 3.11" "$(apt python3.11-venv)"
fi

for program in tar:tar useradd:passwd; do
	name="${program%%:*}"
	# PostgreSQL refuses to run as root, so root starts it as a user of its own.
	if [ "$name" = useradd ] && [ "$(id -u)" -ne 0 ]; then continue; fi
	command -v "$name" >/dev/null 2>&1 || [ -x "/usr/sbin/$name" ] || lacks "the program $name" "$(apt "${program##*:}")"
done

case "$(uname -s)-$(uname -m)" in
Linux-x86_64 | Linux-aarch64) ;;
*) lacks "a Linux machine on x86-64 or arm64 (this is $(uname -s) on $(uname -m))" "use one, or a virtual machine with Debian 12" ;;
esac

free_mb=$(df -Pm . | awk 'NR == 2 {print $4}')
if [ ! -e .venv/.installed ] && [ "${free_mb:-0}" -lt "$NEED_DISK_MB" ]; then
	lacks "disk: ${free_mb} MB are free here, ${NEED_DISK_MB} MB are needed" "free some space, or clone to another disk"
fi
memory_mb=$(awk '/^MemAvailable/ {print int($2 / 1024)}' /proc/meminfo 2>/dev/null)
if [ "${memory_mb:-0}" -lt "$NEED_MEMORY_MB" ]; then
	lacks "memory: ${memory_mb} MB are available, ${NEED_MEMORY_MB} MB are needed" "stop other programs, or use a larger machine"
fi

if [ "$missing" -gt 0 ]; then exit 1; fi
if ! command -v gcc >/dev/null 2>&1; then
	echo "note: no C compiler. Nothing here needs one; compiled kernels of PyTorch would: $(apt gcc g++)" >&2
fi
