#!/bin/sh
# From the recipe to the result that the gate judges.
set -eu
python3 -c 'import pathlib, fimaq.toolchain.data.demo_set as demo; demo.materialise(pathlib.Path("digits"))'
fimaq-tool quantize demo_swin --data digits/train --recipe recipe.toml -o run
fimaq-tool export run -o candidate.onnx
fimaq-tool evaluate candidate.onnx --data digits/val -o candidate.json
