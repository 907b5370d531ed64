# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Instruction counts read from a listing as cuobjdump prints it."""

import json

import pytest
import sass

LISTING = """
Fatbin elf code:
		Function : _ZN8paq_detr4msda12scale_kernelEPKydbPd
	.headerflags	@"EF_CUDA_SM90"
        /*0000*/                   LDC R1, c[0x0][0x28] ;                /* 0x00000a00ff017b82 */
                                                                         /* 0x000fe20000000800 */
        /*0010*/                   LDG.E R2, desc[UR4][R2.64] ;          /* 0x0 */
        /*0020*/                   LDG.E R2, desc[UR4][R2.64] ;          /* 0x0 */
        /*0030*/               @P0 BRA 0x10 ;                            /* 0x0 */
        /*0040*/                   LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ; /* 0x0 */
        /*0050*/              @!P1 LDS.128 R4, [R2] ;                    /* 0x0 */
        /*0060*/                   REDG.E.ADD.F32x4.FTZ.RN.STRONG.GPU desc[UR4][R2.64], R4 ; /* 0x0 */
        /*0070*/              @!P2 BRA 0x40 ;                            /* 0x0 */
        /*0080*/               @P3 BRA 0x0 ;                             /* 0x0 */
        /*0090*/                   STL [R1], R2 ;                        /* 0x0 */
        /*00a0*/                   EXIT ;                                /* 0x0 */
        /*00b0*/                   BRA 0xb0;                             /* 0x0 */
        /*00c0*/                   NOP;                                  /* 0x0 */
"""


def test_the_gather_loop_is_the_innermost_one_with_16_byte_loads():
    ((name, code),) = sass.kernels(LISTING)
    assert name == "_ZN8paq_detr4msda12scale_kernelEPKydbPd"
    assert sass.counts(code) == {
        "instructions": 12, "gather loop": 4, "loads": 1, "additions": 1, "shared": 1, "shuffles": 0, "spills": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rise", "code", "sentence"),
    [(1, 0, ""), (4, 1, "kernel: gather loop 100 -> 104")],
    ids=["one percent more will do", "four percent more will not"],
)
def test_a_count_that_rose_ends_with_one(monkeypatch, tmp_path, capsys, rise, code, sentence):
    row = dict.fromkeys(sass.COLUMNS, 0) | {"instructions": 1000, "gather loop": 100}
    (tmp_path / "before.json").write_text(json.dumps({"kernel": row}))
    monkeypatch.setattr(sass, "measured", lambda *_: {"kernel": row | {"gather loop": 100 + rise}, "new": row})
    monkeypatch.setattr("sys.argv", ["sass.py", "lib.so", "--against", str(tmp_path / "before.json")])
    assert sass.main() == code
    out, err = capsys.readouterr()
    assert err.strip() == sentence and f"100 -> {100 + rise}" in out


def test_what_is_missing_is_said(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["sass.py", "/nowhere/lib.so"])
    assert sass.main() == 2 and capsys.readouterr().err == "sass: /nowhere/lib.so does not exist.\n"
