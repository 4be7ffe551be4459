#!/usr/bin/env python3
"""upper.py DIR OUT.tar: a directory, or an overlay's upper directory, as an OCI layer.

overlayfs marks what is gone by a character device 0:0 and an opaque directory
by an extended attribute; a layer says both with names that begin with `.wh.`.
"""
import os
import stat
import sys
import tarfile


def xattr(path, name):
    try:
        return os.getxattr(path, name, follow_symlinks=False)
    except OSError:
        return None


source, out = os.path.abspath(sys.argv[1]), sys.argv[2]
with tarfile.open(out, "w", format=tarfile.PAX_FORMAT) as tar:
    for directory, subdirectories, files in os.walk(source):
        subdirectories.sort()
        relative = os.path.relpath(directory, source)
        if relative != "." and xattr(directory, "trusted.overlay.opaque") == b"y":
            tar.addfile(tarfile.TarInfo(os.path.join(relative, ".wh..wh..opq")))
        for name in sorted(files + subdirectories):
            path = os.path.join(directory, name)
            member = os.path.relpath(path, source)
            info = os.lstat(path)
            if stat.S_ISCHR(info.st_mode) and info.st_rdev == 0:
                whiteout = os.path.join(os.path.dirname(member), ".wh." + name)
                tar.addfile(tarfile.TarInfo(whiteout))
            else:
                tar.add(path, arcname=member, recursive=False)
