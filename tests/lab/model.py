#!/usr/bin/env python3
"""model.py OUT MIB: a valid safetensors file of MIB MiB, 16 tensors of seeded random weights."""
import json
import os
import random
import struct
import sys

out, mib = sys.argv[1], int(sys.argv[2])
count = 16
each = mib * 1048576 // count
tensors = {
    f"layers.{i}.weight": {
        "dtype": "F16",
        "shape": [each // 2],
        "data_offsets": [i * each, (i + 1) * each],
    }
    for i in range(count)
}
header = json.dumps(tensors).encode()
header += b" " * (-(len(header) + 8) % 4096)
rng = random.Random(mib)
with open(out, "wb") as file:
    file.write(struct.pack("<Q", len(header)) + header)
    for _ in range(mib):
        file.write(rng.randbytes(1048576))
os.utime(out, (1700000000, 1700000000))
