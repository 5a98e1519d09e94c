"""Ways to damage STAR, MRC and JSON files, each drawn from a seeded generator.

Data: files that the caller gives; fuzz.py gives those of tests/support/particle_files.py.
"""
from __future__ import annotations

import json
import random
import struct
from typing import Any, List

from localrefine_plugin.engine.records.settings import SettingInfo, Settings

WORDS = (b"nan", b"-nan", b"inf", b"1e999", b"-1e308", b"1e-320", b"0", b"-1", b"-0", b"2147483648", b"9" * 25, b"0x10",
         b"1_000", "१२".encode(), "−3".encode(), b'""', b"''", b'"', b"'", b"None", b"<NA>", b"true", b"3.", b".5",
         b"000001@../../../../etc/passwd", b"000001@/dev/zero", b"000001@/dev/stdin", b"1@.", b"1@", b"@a",
         b"000001@~/a.mrcs", b"000001@stacks/../stacks/a.mrcs", b"stacks/a.mrcs", b"000001@stacks/a.mrcs\xff",
         b"$(id)", b"`id`", b"%s%n", "Å".encode(), b"_rlnImageName", b"loop_", b"data_", b";", b"#")
BYTES = (b"\0", b"\n", b"\r", b" ", b"'", b'"', b"#", b"_", b";", b"@", b"-", b"e9", b"\xff" * 4, b"\x7f\xff\xff\xff",
         b"\xff\xff\xff\x7f", b"\0\0\xc0\x7f", b"nan ", b"data", b"loop", b"1e99")


def mutated(data: bytes, rng: random.Random, most: int = 4) -> bytes:
    """A few bytes changed, removed, doubled or swapped for telling ones."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, most)):
        at = rng.randrange(len(changed)) if changed else 0
        kind = rng.randrange(5)
        if kind == 0:
            changed[at:at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            del changed[at:at + rng.choice((1, 4, 40))]
        elif kind == 2:
            changed[at:at] = changed[at:at + rng.choice((1, 40))]
        else:
            new = rng.choice(BYTES)
            changed[at:at + len(new)] = new
    return bytes(changed)


def damaged_star(data: bytes, rng: random.Random) -> bytes:
    """Bytes mutated, a value or a line replaced, lines shuffled, cut, or nothing of it left."""
    kind = rng.randrange(10)
    if kind < 4:
        return mutated(data, rng)
    if kind == 4:
        return data[:rng.randrange(len(data))]
    if kind == 5:
        return bytes(rng.randrange(256) for _ in range(rng.randrange(300)))
    lines = data.split(b"\n")
    if kind == 6:
        some = rng.sample(range(len(lines)), rng.randint(1, 3))
        lines = [line for i, line in enumerate(lines) if i not in some]
    elif kind == 7:
        a, b = rng.randrange(len(lines)), rng.randrange(len(lines))
        lines[a], lines[b] = lines[b], lines[a]
    else:
        for _ in range(rng.randint(1, 2)):
            filled = [i for i, line in enumerate(lines) if line.strip()]
            at = rng.choice(filled)
            words = lines[at].split()
            words[rng.randrange(len(words))] = rng.choice(WORDS)
            lines[at] = b" ".join(words)
    return b"\n".join(lines)


def damaged_mrc(data: bytes, rng: random.Random) -> bytes:
    """A header field, bytes of the header, numbers of the body, or the end of the file."""
    changed = bytearray(data)
    kind = rng.randrange(6)
    if kind < 2:
        fields = (0, 4, 8, 12, 28, 32, 36, 40, 44, 48, 64, 68, 72, 88, 92, 104, 208, 212)
        for field in rng.sample(fields, rng.randint(1, 2)):
            small = rng.choice((-1, 0, 1, 2, 3, 4, 6, 12, 16, 17, 101, 401, 1024))
            values = (struct.pack("<i", small), struct.pack(">i", small), struct.pack("<f", small),
                      bytes(rng.randrange(256) for _ in range(4)))
            changed[field:field + 4] = rng.choice(values)
    elif kind == 2:
        header = mutated(bytes(changed[:224]), rng)[:1024]
        changed[:len(header)] = header
    elif kind == 3:
        for _ in range(rng.randint(1, 3)):
            at = 1024 + 4 * rng.randrange((len(data) - 1024) // 4)
            number = rng.choice((float("nan"), float("inf"), -1e38, 3e38, 1e20, 1e-40, 0.0))
            changed[at:at + 4] = rng.choice((struct.pack("<f", number), bytes(rng.randrange(256) for _ in range(4))))
    elif kind == 4:
        return bytes(changed[:rng.randrange(len(changed))])
    else:
        value = struct.pack("<f", rng.choice((0.0, 1.0, float("nan"), 1e30, -5.0)))
        start, count = 1024 + 4 * rng.randrange((len(data) - 1024) // 4), rng.choice((16, 256, 4096))
        end = min(start + 4 * count, len(changed))
        changed[start:end] = value * ((end - start) // 4)
    return bytes(changed)


def damaged_settings(rng: random.Random) -> bytes:
    """Settings of any kind and value, one of them twice, or bytes of the JSON mutated."""
    described = {entry.name: entry for entry in Settings.describe()}
    names = rng.sample(sorted(described), rng.randint(1, 4))
    content = {name: _right(rng, described[name]) if rng.random() < 0.7 else _value(rng) for name in names}
    if rng.random() < 0.1:
        content[rng.choice(("", "bogus", "__class__", "Prior", "prior "))] = _value(rng)
    text = json.dumps(content if rng.random() < 0.95 else _value(rng), ensure_ascii=rng.random() < 0.5)
    data = text.encode(rng.choice(("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16")), "surrogatepass")
    return mutated(data, rng, 2) if rng.random() < 0.3 else data


def _right(rng: random.Random, entry: SettingInfo) -> Any:
    """A value that the setting may have."""
    if entry.kind == "bool":
        return rng.random() < 0.5
    if entry.choices:
        return rng.choice(entry.choices)
    if entry.kind == "symmetry":
        return rng.choice(("C1", "C2", "c3", "D2", "T", "O", "I1"))
    if entry.optional and rng.random() < 0.2:
        return None
    low, high = entry.low, entry.high
    value = rng.choice((low, rng.uniform(low, 30 if high is None else high), rng.uniform(low, low + 10)))
    return int(value) if entry.kind == "int" else value


def _value(rng: random.Random, depth: int = 0) -> Any:
    """Anything that JSON can say."""
    offered: List[Any] = [m for f in Settings.describe() for m in f.choices] + ["C1", "D2", "O", "C0", "I5", "", "Å"]
    kind = rng.randrange(9 if depth < 3 else 7)
    if kind == 0:
        return rng.choice((None, True, False, "true", "0", "1"))
    if kind == 1:
        return rng.choice(offered)
    if kind == 2:
        return rng.choice((0, 1, -1, 2 ** 31, 2 ** 31 - 1, 2 ** 63, 10 ** 400, 50, 100))
    if kind < 6:
        return rng.choice((0.0, -0.0, 0.1, 0.5, 1.0, 3.3, 12.0, 45.0, 200.0, 1e-9, 1e300, float("nan"), float("inf")))
    if kind == 6:
        points = (0, 7, 8.5, 15, 16, -1, "1", None, True, float("nan"))
        return [rng.choice(points) for _ in range(rng.choice((2, 3, 3, 4)))]
    if kind == 7:
        return [_value(rng, depth + 1) for _ in range(rng.randint(0, 3))]
    return {rng.choice("abc"): _value(rng, depth + 1)}
