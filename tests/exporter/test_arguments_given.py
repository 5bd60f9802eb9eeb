"""What Python callers hand over by mistake is named as they wrote it, with what to write instead."""

from __future__ import annotations

import numpy as np
import pytest

import deployml
from deployml.exporter.options import output_path
from deployml.runtime.errors import InputError


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("inputs", lambda: deployml.export("m.pt", output="m.onnx", inputs="ids:int64[batch,seq]")),
        ("allow_globals", lambda: deployml.validate("m.onnx", against="m.pt", allow_globals="a.B")),
        ("disable_fusion", lambda: deployml.optimize("m.onnx", output="o.onnx", disable_fusion="ATT101")),
        ("contenders", lambda: deployml.bench("m.onnx", contenders="x.onnx")),
    ],
)
def test_a_text_where_a_list_is_wanted(name, call):
    with pytest.raises(InputError, match=f"{name} is the text '") as caught:
        call()
    assert caught.value.hint.startswith(f'give {name}=["')


@pytest.mark.parametrize(("data", "words"), [(5, "of the type int"), ([[1]], "data 0 is of the type list")])
def test_data_that_is_no_set_of_named_arrays(exported, data, words):
    with pytest.raises(InputError, match=words) as caught:
        deployml.validate(exported, against=exported.with_name("encoder.unfused.onnx"), data=data)
    assert "array" in caught.value.hint


def test_one_set_of_named_arrays_is_a_case(exported):
    ids = np.arange(8, dtype=np.int64).reshape(2, 4)
    data = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    found = deployml.validate(exported, against=exported.with_name("encoder.unfused.onnx"), data=data).parity
    assert "data 0" in {c.case for c in found.comparisons}


@pytest.mark.parametrize(
    ("given", "better"), [("o2/n.txt", "o2/n.txt.onnx"), ("bert", "bert.onnx"), ("", "model.onnx")]
)
def test_a_name_that_is_no_onnx_file_keeps_its_folder_in_the_hint(given, better):
    with pytest.raises(InputError) as caught:
        output_path(given)
    assert caught.value.hint == f"let it end in .onnx: -o {better}"


def test_more_than_there_are_cannot_be_fused(exported, tmp_path):
    source = exported.with_name("encoder.unfused.onnx")
    with pytest.raises(deployml.VerdictError, match="has 2 attentions, --require-fused wants 9") as caught:
        deployml.optimize(source, output=tmp_path / "x.onnx", require_fused=9)
    assert "at most 2" in caught.value.hint and not list(tmp_path.iterdir())
