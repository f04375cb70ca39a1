"""The kinds of recurrent layers: their arguments and their equations."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

from numpy.typing import DTypeLike

from . import _checks
from .activations import Activation, check, for_core
from .module import Fixed, given
from .recurrent import _Recurrent
from .weights import Array, split

States = tuple[Array, Array]


class LSTM(_Recurrent[States]):
    """A stack of LSTM layers, with the arguments and the meaning of torch.nn.LSTM.

    For every layer and time step (Hochreiter and Schmidhuber 1997, doi:10.1162/neco.1997.9.8.1735,
    with the forget gate of Gers et al. 2000, doi:10.1162/089976600300015015)::

        a_k = W_ih[k] x_t + b_ih[k] + W_hh[k] h_{t-1} + b_hh[k]        k in i, f, g, o
        i, f, o = sigmoid(a_i), sigmoid(a_f), sigmoid(a_o);  g = tanh(a_g)
        c_t = f * c_{t-1} + i * g
        h_t = o * tanh(c_t)                        (h_t = W_hr h_t with a projection)

    Shapes: T steps, B sequences, I inputs, H hidden units, P projected units, L layers, D
    directions; R = P with a projection, else H.

    Parameters
    ----------
    input_size, hidden_size : int
        I and H, at least 1.
    num_layers : int
        L, at least 1.
    bias : bool
    batch_first : bool
        x and y are (B, T, ...) instead of (T, B, ...). States are (L*D, B, ...) either way.
    dropout : float
        Probability, 0 to 1, of dropping an output between layers, in `forward(train=True)` only.
    bidirectional : bool
        D = 2: y holds the forward and the reverse direction side by side.
    proj_size : int
        P, 1 to H - 1, or 0 for no projection.
    reverse : bool
        The one direction reads each sequence from its last step (of its length) to its first; y
        stays in the order of time, and h_n is the state after the first step.
    zoneout : float
        Probability, 0 to 1, that a unit of h keeps what it had (Krueger et al. 2017,
        arXiv:1606.01305; of h alone, as in Haste), in `forward(train=True)`, drawn for every step,
        sequence and unit. Calls, streams and `train=False` take the mean of all draws::

            h_t = zoneout * h_{t-1} + (1 - zoneout) * h_t

        The gates and c are what they were. With a projection h_t is what it gives; there can be no
        `proj_clip`.
    recurrent_dropout : float
        Probability, 0 to 1, of dropping a weight of weight_hh, in `forward(train=True)` only: one
        mask for all steps and sequences of a call, and what is left divided by 1 minus it. This is
        DropConnect (Wan et al. 2013; on recurrent weights Merity et al. 2018, arXiv:1708.02182), as
        Haste's `dropout` has it; Keras' recurrent_dropout drops units of h instead. May be changed,
        as `dropout` may.
    peephole : bool
        i and f see c_{t-1} and o sees c_t, each unit its own (Gers et al. 2002): weight_peep_l0
        (3H: i, f, o) times c is added to their pre-activations. With `coupled` the gate that is not
        computed sees nothing, and there are 2H: i, o or f, o.
    coupled : None, "f=1-i" or "i=1-f"
        One gate is what the other leaves; the weights hold the three that are computed, in order.
    activations : None, or 3 of them: of i, f and o; of g; of c in h_t = o * tanh(c_t)
        Each a name or (name, alpha, beta), and 6 of them where two directions differ: sigmoid,
        tanh, relu, hard_sigmoid_keras2 (clip(0.2 x + 0.5, 0, 1)), hard_sigmoid_keras3
        (relu6(x + 3) / 6), softsign, softplus, affine, leaky_relu, thresholded_relu,
        scaled_tanh, elu, as ONNX defines them.
    clip, cell_clip : float or None
        Pre-activations, and c_t, are clipped to [-clip, clip], with no gradient beyond.
    proj_bias : bool
        A projection has a bias, bias_hr_l0 (P): h_t = W_hr h_t + b_hr.
    proj_clip : float or None
        What a projection gives is clipped, as by `cell_clip`, before it is fed back and shown.
    layer_norm : None, "litert" or "haste"
        Layer norm has at least four meanings in LSTMs (after Ba et al. 2016, arXiv:1607.06450), of
        which two are here; in both c is carried as it is. With N(s) = (s - mean(s)) /
        sqrt(variance(s) + e), LiteRT normalises each gate's sum of products (and of its peephole)
        over the H units before its bias is added, with e = 1e-8::

            a_k = w_ln[k] * N(s_k) + b_ih[k] + b_hh[k]

        Haste normalises both products, each over the 4H units of all gates together, and c as it is
        shown, with e = 1e-5; it has no peepholes and no coupled gates::

            a   = w_ln_ih * N(W_ih x_t) + w_ln_hh * N(W_hh h_{t-1}) + b_ih + b_hh
            h_t = o * tanh(w_ln_cell * N(c_t) + b_ln_cell)

        weight_ln_l0 (4H, with coupled gates 3H), or weight_ln_ih_l0 and weight_ln_hh_l0 (4H) and
        weight_ln_cell_l0 (H), start as ones, bias_ln_cell_l0 (H) as zeros. The other two meanings,
        of torch's and TensorFlow's examples, carry a normalised c.
    forget_bias : float
        Added to f's part of bias_ih_l0 and its like as they are drawn, and to no weights that are
        loaded: with 1 the cell keeps more of what it holds at first (Gers et al. 2000). Where
        coupled="f=1-i" has no bias of f, it is taken from i's.
    dtype : "float32" or "float64"
        Of the weights, of all arrays, and of the arithmetic.
    seed : int or None
        Seed for weight initialisation and dropout. None: fresh entropy.

    Notes
    -----
    Weights are drawn from U(-1/sqrt(H), 1/sqrt(H)), as PyTorch does. They are one immutable block,
    replaced as a whole by `load_state_dict` or an optimiser; a call, a tape or a step keeps the
    block it started with. One LSTM may be called from many threads at once. A copy has the current
    weights and its own dropout seed.

    Examples
    --------
    >>> lstm = cylstm.LSTM(8, 16, num_layers=2, seed=1)
    >>> y, (h_n, c_n) = lstm(np.zeros((5, 3, 8), np.float32))
    >>> y.shape, h_n.shape, c_n.shape
    ((5, 3, 16), (2, 3, 16), (2, 3, 16))
    """

    __slots__ = ()

    _cell = "LSTM"

    proj_size = Fixed[int]()
    peephole = Fixed[bool]()
    coupled = Fixed["str | None"]()
    activations = Fixed["tuple[Activation, ...] | None"]()
    clip = Fixed["float | None"]()
    cell_clip = Fixed["float | None"]()
    proj_bias = Fixed[bool]()
    proj_clip = Fixed["float | None"]()
    layer_norm = Fixed["str | None"]()
    forget_bias = Fixed[float]()

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        *,
        reverse: bool = False,
        zoneout: float = 0.0,
        recurrent_dropout: float = 0.0,
        peephole: bool = False,
        coupled: str | None = None,
        activations: Sequence[Activation] | None = None,
        clip: float | None = None,
        cell_clip: float | None = None,
        proj_bias: bool = False,
        proj_clip: float | None = None,
        layer_norm: str | None = None,
        forget_bias: float = 0.0,
        dtype: DTypeLike = "float32",
        seed: int | None = None,
    ) -> None:
        self._make(given(locals()), seed=seed)

    def _configure_cell(
        self,
        hidden_size: int,
        bias: bool,
        bidirectional: bool,
        proj_size: int = 0,
        peephole: bool = False,
        coupled: str | None = None,
        activations: Any = None,
        clip: float | None = None,
        cell_clip: float | None = None,
        proj_bias: bool = False,
        proj_clip: float | None = None,
        layer_norm: str | None = None,
        forget_bias: float = 0.0,
    ) -> dict[str, Any]:
        proj_size = _checks.integer("proj_size", proj_size, 0)
        if proj_size >= hidden_size:
            raise ValueError(
                f"proj_size is {proj_size}, expected less than hidden_size {hidden_size}"
            )
        found = {
            "proj_size": proj_size,
            "peephole": _checks.flag("peephole", peephole),
            "coupled": _checks.choice_or_none("coupled", coupled, ("f=1-i", "i=1-f")),
            "activations": check(activations, 3, bidirectional),
            "clip": _limit("clip", clip),
            "cell_clip": _limit("cell_clip", cell_clip),
            "proj_bias": _checks.flag("proj_bias", proj_bias),
            "proj_clip": _limit("proj_clip", proj_clip),
            "layer_norm": _checks.choice_or_none("layer_norm", layer_norm, ("litert", "haste")),
            "forget_bias": _checks.number("forget_bias", forget_bias, -inf),
        }
        conflicts = (
            (layer_norm == "haste", ("peephole", "coupled"), "with layer_norm='haste'", "none"),
            (not proj_size, ("proj_bias", "proj_clip"), "without a projection", "a proj_size"),
            (not bias, ("forget_bias",), "without biases", "bias=True"),
        )
        for applies, names, how, expected in conflicts:
            for name in names:
                if applies and found[name]:
                    raise ValueError(f"{name} is {found[name]!r} {how}, expected {expected}")
        return found

    def _cell_of(self, arguments: dict[str, Any]) -> str:
        return f"LSTM, {arguments['coupled']}" if arguments["coupled"] else "LSTM"

    def _draw(self, flat: Array, seed: Any) -> None:
        super()._draw(flat, seed)
        amount = -self.forget_bias if self.coupled == "f=1-i" else self.forget_bias
        first = 0 if self.coupled else self.hidden_size  # i, g, o or f, g, o or i, f, g, o
        for name, array in split(self._spec, flat).items():
            if "_ln_" in name:
                array[...] = name.startswith("weight")
            if name.startswith("bias_ih"):
                array[first : first + self.hidden_size] += amount

    def _options(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return {
            "peephole": arguments["peephole"],
            "activations": for_core(arguments["activations"], 3, arguments["bidirectional"]),
            "clip": arguments["clip"] or 0,
            "cell_clip": arguments["cell_clip"] or 0,
            "proj_bias": arguments["proj_bias"],
            "proj_clip": arguments["proj_clip"] or 0,
            "layer_norm": arguments["layer_norm"],
        }


def _limit(name: str, value: Any) -> float | None:
    if value is None:
        return None
    limit = _checks.number(name, value)
    if limit == 0:
        raise ValueError(f"{name} is {value!r}, expected a positive number or None")
    return limit


class GRU(_Recurrent[Array]):
    """A stack of GRU layers, with the arguments and the meaning of torch.nn.GRU.

    For every layer and time step (Cho et al. 2014, doi:10.3115/v1/D14-1179)::

        a_k = W_ih[k] x_t + b_ih[k] + W_hh[k] h_{t-1} + b_hh[k]               k in r, z
        r, z = sigmoid(a_r), sigmoid(a_z)
        n = tanh(W_ih[n] x_t + b_ih[n] + r * (W_hh[n] h_{t-1} + b_hh[n]))
        h_t = (1 - z) * n + z * h_{t-1}

    With `reset_after=False` r is applied before the product, as Cho et al. have it::

        n = tanh(W_ih[n] x_t + b_ih[n] + W_hh[n] (r * h_{t-1}) + b_hh[n])

    The state is h_t alone, also in calls: `y, h_n = gru(x, h_0)`.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout
        As those of `LSTM`,
    bidirectional, reverse, zoneout, recurrent_dropout, dtype, seed
        and so are these.
    reset_after : bool
        True as in PyTorch, cuDNN and Keras from 2 on; False as in Keras 1 and by default in ONNX.
    activations : None, or 2 of them: of r and z; of n
    clip : float or None
        As those of `LSTM`.

    Notes
    -----
    The weights have PyTorch's names, shapes and order of gates: weight_ih_l0 (3H, I) holds r, z, n.

    Examples
    --------
    >>> import cylstm, numpy as np
    >>> gru = cylstm.GRU(8, 16, num_layers=2, seed=1)
    >>> y, h_n = gru(np.zeros((5, 3, 8), np.float32))
    >>> y.shape, h_n.shape
    ((5, 3, 16), (2, 3, 16))
    """

    __slots__ = ()

    _cell = "GRU"

    reset_after = Fixed[bool]()
    activations = Fixed["tuple[Activation, ...] | None"]()
    clip = Fixed["float | None"]()

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        reverse: bool = False,
        zoneout: float = 0.0,
        recurrent_dropout: float = 0.0,
        reset_after: bool = True,
        activations: Sequence[Activation] | None = None,
        clip: float | None = None,
        dtype: DTypeLike = "float32",
        seed: int | None = None,
    ) -> None:
        self._make(given(locals()), seed=seed)

    def _configure_cell(
        self,
        hidden_size: int,
        bias: bool,
        bidirectional: bool,
        reset_after: bool = True,
        activations: Any = None,
        clip: float | None = None,
    ) -> dict[str, Any]:
        return {
            "reset_after": _checks.flag("reset_after", reset_after),
            "activations": check(activations, 2, bidirectional),
            "clip": _limit("clip", clip),
        }

    def _options(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return {
            "activations": for_core(arguments["activations"], 2, arguments["bidirectional"]),
            "clip": arguments["clip"] or 0,
        }

    def _cell_of(self, arguments: dict[str, Any]) -> str:
        return "GRU" if arguments["reset_after"] else "GRU, reset before"


class RNN(_Recurrent[Array]):
    """A stack of plain recurrent layers, with the arguments and the meaning of torch.nn.RNN.

    For every layer and time step (Elman 1990, doi:10.1207/s15516709cog1402_1)::

        h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)

    The state is h_t alone, also in calls: `y, h_n = rnn(x, h_0)`.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout
        As those of `LSTM`,
    bidirectional, reverse, zoneout, recurrent_dropout, dtype, seed
        and so are these.
    nonlinearity : "tanh" or "relu"
        f.
    activations : None, or f as one of those of `LSTM`
    clip : float or None
        As that of `LSTM`.

    Notes
    -----
    The weights have PyTorch's names and shapes: weight_ih_l0 (H, I).

    Examples
    --------
    >>> import cylstm, numpy as np
    >>> rnn = cylstm.RNN(8, 16, nonlinearity="relu", seed=1)
    >>> y, h_n = rnn(np.zeros((5, 3, 8), np.float32))
    >>> y.shape, h_n.shape
    ((5, 3, 16), (1, 3, 16))
    """

    __slots__ = ()

    _cell = "RNN"

    nonlinearity = Fixed[str]()
    activations = Fixed["tuple[Activation, ...] | None"]()
    clip = Fixed["float | None"]()

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        reverse: bool = False,
        zoneout: float = 0.0,
        recurrent_dropout: float = 0.0,
        activations: Sequence[Activation] | None = None,
        clip: float | None = None,
        dtype: DTypeLike = "float32",
        seed: int | None = None,
    ) -> None:
        self._make(given(locals()), seed=seed)

    def _configure_cell(
        self,
        hidden_size: int,
        bias: bool,
        bidirectional: bool,
        nonlinearity: str = "tanh",
        activations: Any = None,
        clip: float | None = None,
    ) -> dict[str, Any]:
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"nonlinearity is {nonlinearity!r}, expected 'tanh' or 'relu'")
        if activations is not None and nonlinearity != "tanh":
            raise ValueError("nonlinearity and activations were both given: expected one of them")
        return {
            "nonlinearity": nonlinearity,
            "activations": check(activations, 1, bidirectional),
            "clip": _limit("clip", clip),
        }

    def _options(self, arguments: dict[str, Any]) -> dict[str, Any]:
        names = arguments["activations"]
        if names is None and arguments["nonlinearity"] == "relu":
            names = ("relu",)
        return {
            "activations": for_core(names, 1, arguments["bidirectional"]),
            "clip": arguments["clip"] or 0,
        }
