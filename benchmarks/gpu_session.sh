#!/usr/bin/env bash
# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
#
# run_gpu.py on a machine with a GPU, torch and nothing else: no network, no Detectron2, no built library.
#
#   OUT=results KIT=gpu_kit bash benchmarks/gpu_session.sh [options of run_gpu.py, --dry-run among them]
#
# KIT is a folder made by gpu_kit.py where there is a network, for that machine's Python and GPU (all parts but lib/ may
# be missing):
#   lib/NAME/          a build of the native library: _C.abi3.so and _build_record.json
#   wheels/            what training needs and that machine lacks (fvcore, ..., pycocotools), and peers' wheels
#   peers/             what is no wheel: folders for PYTHONPATH (Detectron2, peers), transformers_deformable_detr.so
#   cu12/              the wheel nvidia-cuda-runtime-cu12, for the peer ms-deform-attn
#   train.yaml, data/  a training for the rest of the time; REPO/ and KIT/ in the yaml are replaced
# OUT gets report.json, report.log and the training's log and metrics, six files at most.
set -u
cd "$(dirname "$0")/.."
KIT=$(realpath "${KIT:-gpu_kit}") OUT=$(mkdir -p "${OUT:?names the folder for the results}" && realpath "$OUT")
PYTHON=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

path=$KIT/peers
if [ -z "${NO_WHEELS:-}" ] && ls "$KIT"/wheels/*.whl >/dev/null 2>&1; then
  # a wheel that does not fit here must not keep the others out
  for wheel in "$KIT"/wheels/*.whl; do
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$work/site" "$wheel" \
      2>&1 | grep -v -e WARNING -e notice
  done
  path=$work/site:$path
fi
export PYTHONPATH=$path${PYTHONPATH:+:$PYTHONPATH}
for wheel in "$KIT"/cu12/*.whl; do
  [ -e "$wheel" ] && "$PYTHON" -m zipfile -e "$wheel" "$work/cu12" &&
    export LD_LIBRARY_PATH=$work/cu12/nvidia/cuda_runtime/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
done
[ -e "$KIT/peers/transformers_deformable_detr.so" ] &&
  export PAQ_DETR_TRANSFORMERS_KERNEL=$KIT/peers/transformers_deformable_detr.so

options=()
if [ -e "$KIT/train.yaml" ]; then
  sed -e "s#REPO/#$PWD/#" -e "s#KIT/#$KIT/#g" "$KIT/train.yaml" >"$work/train.yaml"
  options+=(--train "$work/train.yaml")
fi
mkdir -p "$work/results"
"$PYTHON" benchmarks/run_gpu.py --json "$work/results/report.json" --builds "$KIT/lib" "${options[@]}" "$@" &
runner=$!
# What exists is copied while it runs, so that an outer time limit loses nothing.
collect() {
  cp -f "$work"/results/report.* "$OUT"/ 2>/dev/null
  cp -f "$work"/results/training/{metrics.json,log.txt,config.yaml} "$OUT"/ 2>/dev/null
}
while kill -0 $runner 2>/dev/null; do sleep 2; collect; done
wait $runner
code=$?
collect
exit $code
