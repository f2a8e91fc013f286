"""Files that nobody would write: an error with a message, never a traceback and never a pass."""

import hashlib
import json
import math
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fimaq.deploy.gate import GateConfig, load_config, run_gate
from fimaq.deploy.gate.evidence import read_evidence
from fimaq.toolchain.errors import InputError, UsageError
from fimaq.toolchain.evaluate.figures import FIGURES, SEAL, sealed

N = 300
MANY = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture
def failing(write):
    """A baseline that is always right and a candidate that is wrong on a tenth, which fails."""
    baseline = write("float", np.zeros(N, int))
    candidate = write("candidate", np.where(np.arange(N) < N // 10, 9, 0))
    assert verdict(baseline, candidate) == "fail"
    return baseline, candidate


def verdict(baseline, candidate):
    return run_gate(candidate, GateConfig(baselines={"float": baseline})).verdict


def never_passes(baseline, candidate):
    with suppress(InputError):
        assert verdict(baseline, candidate) != "pass"


@st.composite
def damaged(draw, content):
    """The bytes with some overwritten, cut out, put in, or cut off."""
    start = draw(st.integers(0, len(content) - 1))
    length = draw(st.integers(0, 40))
    return content[:start] + draw(st.binary(max_size=40)) + draw(st.sampled_from([content[start + length :], b""]))


@MANY
@given(data=st.data(), which=st.sampled_from([0, 1]), suffix=st.sampled_from([".json", ".npz"]))
def test_damaged_bytes(failing, data, which, suffix):
    path = failing[which].with_suffix(suffix)
    whole = path.read_bytes()
    try:
        path.write_bytes(data.draw(damaged(whole)))
        never_passes(*failing)
    finally:
        path.write_bytes(whole)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@MANY
@given(key=st.sampled_from([*FIGURES, "other"]), value=json_values, which=st.sampled_from([0, 1]))
def test_any_value_in_any_key_sealed_again(failing, key, value, which):
    path = failing[which]
    whole = path.read_text()
    figures = json.loads(whole)
    del figures[SEAL]
    try:
        path.write_text(json.dumps(sealed({**figures, key: value})))
        never_passes(*failing)
    finally:
        path.write_text(whole)


@MANY
@given(value=json_values, top=st.floats(0, 100))
def test_any_baseline_without_predictions(failing, value, top):
    """What is left of a result may be anything; a pass against it would have to be earned by its own figures."""
    baseline, candidate = failing
    whole, arrays = baseline.read_text(), baseline.with_suffix(".npz").read_bytes()
    figures = json.loads(whole)
    del figures[SEAL]
    try:
        baseline.with_suffix(".npz").unlink()
        baseline.write_text(json.dumps(sealed({**figures, "top1": top, "top5": value})))
        with pytest.raises(InputError):
            verdict(baseline, candidate)
    finally:
        baseline.write_text(whole)
        baseline.with_suffix(".npz").write_bytes(arrays)


arrays = st.sampled_from(["sample_ids", "labels", "top5", "top5_logits", "logits"])
dtypes = st.sampled_from(["<i8", ">i4", "<f4", "<f8", "?", "<U3", "S2", "<M8[s]", "<c8", "V3"])
shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple) | st.sampled_from([(N,), (N, 5)])


@MANY
@given(name=arrays, dtype=dtypes, shape=shapes, forge=st.booleans())
def test_arrays_of_any_type_and_shape(failing, name, dtype, shape, forge):
    """Also where the json has the hash of the arrays as they are now."""
    baseline, candidate = failing
    path, text = candidate.with_suffix(".npz"), candidate.read_text()
    whole = path.read_bytes()
    try:
        with np.load(path) as archive:
            np.savez(path, **{**archive, name: np.zeros(shape, np.dtype(dtype))})
        if forge:
            forge_hash(candidate)
        never_passes(baseline, candidate)
    finally:
        path.write_bytes(whole)
        candidate.write_text(text)


def forge_hash(candidate):
    """Let the json claim the arrays that lie beside it, if a hash of them can be had at all."""
    try:
        read_evidence(candidate)
    except InputError as error:
        if "does not belong to" not in str(error):
            return
    with np.load(candidate.with_suffix(".npz")) as archive:
        digest = hashlib.sha256()
        for name in ("sample_ids", "labels", "top5", "top5_logits", "logits"):
            if name in archive:
                array = archive[name]
                digest.update(f"{name}{array.dtype.str}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    figures = json.loads(candidate.read_text())
    del figures[SEAL]
    candidate.write_text(json.dumps(sealed({**figures, "predictions_sha256": digest.hexdigest()})))


TABLES = ["top1", "top5", "mean_class", "worst_class", "flips", "floor", "size", "latency", "baselines"]
words = st.sampled_from(
    ["max_drop", "max_percent", "max_ratio", "max_bytes", "policy", "evidence", "top1", "float", "x"]
)
toml_values = st.one_of(
    st.integers(-3, 200).map(str),
    st.floats().map(lambda number: "nan" if math.isnan(number) else "inf" if math.isinf(number) else repr(number)),
    st.sampled_from(
        ["true", '"strict"', '"f.json"', "[]", '["a"]', "{}", "{ float = 1 }", '{ float = "x" }', "1979-05-27"]
    ),
)


@MANY
@given(
    st.lists(
        st.tuples(st.sampled_from([None, *TABLES]), words | st.sampled_from(["policy", "confidence"]), toml_values)
    )
)
def test_toml_of_any_tables_and_values(tmp_path, lines):
    by_table = {}
    for table, name, value in lines:
        by_table.setdefault(table, {})[name] = value
    text = "".join(
        (f"[{table}]\n" if table else "") + "".join(f"{name} = {value}\n" for name, value in own.items())
        for table, own in sorted(by_table.items(), key=lambda item: item[0] or "")
    )
    reads_or_refuses(tmp_path / "gate.toml", text.encode())


@MANY
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode(errors="surrogatepass")))
def test_toml_of_any_bytes(tmp_path, content):
    reads_or_refuses(tmp_path / "gate.toml", content)


def reads_or_refuses(path, content):
    path.write_bytes(content)
    with suppress(InputError, UsageError):
        config = load_config(path)
        assert any((*config.compared(), config.floor, config.size))
        config.with_options()
