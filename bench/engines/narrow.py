"""The engines that compute with fewer bits, each beside its float32 self: int8 and bfloat16."""

from __future__ import annotations

import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any, ClassVar

from bench.engines.base import Engine, Unsupported, need_float32, need_lstm
from bench.engines.cylstm import Cylstm
from bench.engines.onnx import OnnxRuntime, OnnxRuntimeBinding, OpenVino
from bench.engines.torch import Torch
from bench.problem import Array, Problem


class _Quantized(Cylstm):
    """`cylstm.quantize`."""

    weights: ClassVar[str]
    inputs: ClassVar[str | None] = None

    def _net(self, p: Problem) -> Any:
        import cylstm

        products = self.weights == "bfloat16" and cylstm.show_config()["bf16"]
        arithmetic = "bfloat16" if products else None
        net = super()._net(p)
        return cylstm.quantize(net, self.weights, arithmetic=arithmetic, inputs=self.inputs)


class CylstmBfloat16(_Quantized):
    """Products of bfloat16 where the CPU has them, else its weights alone."""

    name = "cylstm-bf16"
    weights = "bfloat16"


class CylstmInt8(_Quantized):
    name = "cylstm-int8"
    weights = "int8"


class CylstmInt8Wide(CylstmInt8):
    """x_t with 16 bits, h_t with 8."""

    name = "cylstm-int8-x16"
    inputs = "int16"


class _OrtInt8(OnnxRuntime):
    """Weights of int8 with a scale for each channel; activations as a call goes on.

    Without VNNI its sums of 16 bits saturate, and the outputs are wrong by a third, unless weights
    have 7 bits, which its documentation then asks for.
    """

    def graph(self, p: Problem) -> bytes:
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic

        import cylstm

        need_lstm(p)
        logging.getLogger().setLevel(logging.ERROR)  # else it recommends other steps first
        options = {
            "per_channel": True,
            "weight_type": QuantType.QInt8,
            "reduce_range": "vnni" not in cylstm.show_config()["int8"],
        }
        model = onnx.load_from_string(super().graph(p))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "int8.onnx")
            quantize_dynamic(model, path, **options)
            written = onnx.load(path)
        kinds = {node.op_type for node in written.graph.node}
        if "DynamicQuantizeLSTM" not in kinds:
            raise Unsupported(f"quantize_dynamic leaves {', '.join(sorted(kinds))}")
        serialized: bytes = written.SerializeToString()
        return serialized


class OrtInt8(_OrtInt8):
    name = "ort-int8"


class OrtInt8Binding(_OrtInt8, OnnxRuntimeBinding):
    name = "ort-int8-binding"


class TorchInt8(Torch):
    """`quantize_dynamic` of a module that holds the LSTM: the LSTM alone it does not convert."""

    name = "torch-int8"

    def _paths(self, p: Problem) -> list[bool]:
        return [True]

    def _net(self, p: Problem) -> Any:
        import torch

        need_float32(p)
        need_lstm(p)
        if p.shape.proj_size:
            raise Unsupported("no projection")

        holder = torch.nn.ModuleDict({"lstm": super()._net(p)}).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # which announce that this will move
            quantized = torch.ao.quantization.quantize_dynamic(holder, {torch.nn.LSTM}, torch.qint8)
        net = quantized["lstm"]
        if isinstance(net, torch.nn.LSTM):
            raise Unsupported("quantize_dynamic left the LSTM as it was")
        return net

    def _cell_step(self, p: Problem) -> list[Any]:
        return []


class TorchBfloat16(Torch):
    """A module of bfloat16, and inputs of it."""

    name = "torch-bf16"

    def _net(self, p: Problem) -> Any:
        import torch

        need_float32(p)
        return super()._net(p).to(torch.bfloat16)

    def _tensor(self, array: Array) -> Any:
        import torch

        return torch.tensor(array).to(torch.bfloat16)

    def _cell_step(self, p: Problem) -> list[Any]:
        return []


class OpenVinoBfloat16(OpenVino):
    name = "openvino-bf16"
    precision = "bf16"


NARROW: dict[str, type[Engine]] = {
    engine.name: engine
    for engine in (
        CylstmBfloat16,
        CylstmInt8,
        CylstmInt8Wide,
        OrtInt8,
        OrtInt8Binding,
        TorchInt8,
        OpenVinoBfloat16,
        TorchBfloat16,
    )
}
