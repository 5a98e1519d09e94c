"""How 1xnr_pseudo_atoms.npz was made: the 16S rRNA of PDB entry 1XNR (30S subunit), three beads per nucleotide.

    python -m examples.data.make_pseudo_atoms 1xnr.cif.gz

Needs gemmi, which nothing else here does. A bead stands for the phosphate, the sugar or the base of a
nucleotide; its weight is the net scattering of its atoms in vitreous ice, and it sits at their centre.
"""
from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import numpy as np

# Electron scattering amplitude f(0) in Å (Doyle & Turner 1968, doi:10.1107/S0567739468000756) and displaced
# solvent volume in Å³ (Fraser, MacRae & Suzuki 1978, doi:10.1107/S0021889878014296).
ELEMENTS = {"H": (0.53, 5.15), "C": (2.51, 16.44), "N": (2.21, 2.49), "O": (1.98, 9.13), "P": (5.49, 5.73)}
# f(0) per Å³ of vitreous ice: 0.94 g/cm³, where liquid water has one molecule per 30 Å³.
SOLVENT = 0.94 * (1.98 + 2 * 0.53) / 30.0
PHOSPHATE = {"P", "OP1", "OP2", "O1P", "O2P", "O5'", "O3'"}
# Body B is the head of the 30S (3' major domain of the 16S rRNA); it turns about helix 28, the neck.
HEAD = (923, 1393)
NECK = ((921, 924), (1391, 1395))

Bead = Tuple[int, float, np.ndarray]


def beads(path: str) -> Iterator[Bead]:
    """(residue number, net scattering, position in Å) of every bead of the model."""
    import gemmi
    for chain in gemmi.read_structure(path)[0]:
        for residue in chain:
            for atoms in by_group(residue).values():
                scattering, volume = np.array([ELEMENTS[a.element.name.upper()] for a in atoms]).T
                position = np.average([a.pos.tolist() for a in atoms], axis=0, weights=scattering)
                yield residue.seqid.num, float(np.sum(scattering - SOLVENT * volume)), position


def by_group(residue: Any) -> Dict[str, List[Any]]:
    groups: Dict[str, List[Any]] = {}
    for atom in residue:
        group = "phosphate" if atom.name in PHOSPHATE else "sugar" if atom.name.endswith("'") else "base"
        groups.setdefault(group, []).append(atom)
    return groups


def between(number: np.ndarray, span: Tuple[int, int]) -> np.ndarray:
    return (number >= span[0]) & (number <= span[1])


def main(path: str) -> None:
    rows = list(beads(path))
    number, weight, position = np.array([r[0] for r in rows]), np.array([r[1] for r in rows]), [r[2] for r in rows]
    position -= np.average(position, axis=0, weights=weight)
    neck = between(number, NECK[0]) | between(number, NECK[1])
    np.savez_compressed(Path(__file__).with_name("1xnr_pseudo_atoms.npz"), in_body_b=between(number, HEAD),
                        position_angstrom=position.round(1).astype(np.float32),
                        weight=weight.round(2).astype(np.float32),
                        fulcrum_angstrom=position[neck].mean(axis=0).round(2))


if __name__ == "__main__":
    main(sys.argv[1])
