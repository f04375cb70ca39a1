"""cylstm.torch against torch.nn.LSTM: values, gradients, and that it takes its place."""

from __future__ import annotations

import copy
import logging
import pickle
import threading
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

import cylstm.torch as ours_module
from cylstm import torch_weights

CASES: list[dict[str, Any]] = [
    dict(),
    dict(bias=False, batch_first=True),
    dict(num_layers=2, bidirectional=True),
    dict(num_layers=2, bidirectional=True, proj_size=2, batch_first=True),
    dict(cell="GRU"),
    dict(cell="GRU", num_layers=2, bidirectional=True, bias=False, batch_first=True),
    dict(cell="RNN", num_layers=2, bidirectional=True),
    dict(cell="RNN", nonlinearity="relu", batch_first=True),
]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def pair(case: dict[str, Any], dtype: torch.dtype = torch.float64) -> tuple[Any, Any]:
    """Ours and torch's, with the same weights, which torch drew."""
    torch.manual_seed(1)
    arguments = {**case}
    cell = arguments.pop("cell", "LSTM")
    theirs = getattr(torch.nn, cell)(3, 4, dtype=dtype, **arguments)
    ours = getattr(ours_module, cell)(3, 4, dtype=dtype, **arguments)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def inputs(case: dict[str, Any]) -> tuple[Any, Any]:
    """x, and states that are not zero; B = T, so that batch_first changes no shape."""
    n = case.get("num_layers", 1) * (2 if case.get("bidirectional") else 1)
    shapes = [(5, 5, 3), (n, 5, case.get("proj_size", 4)), (n, 5, 4)]
    x, *states = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes)
    return x, states if case.get("cell", "LSTM") == "LSTM" else states[:1]


def as_hx(states: Any) -> Any:
    """(h, c), or h alone."""
    return tuple(states) if len(states) > 1 else states[0]


def flat(result: Any) -> tuple[Any, ...]:
    y, hidden = result
    return (y, *hidden) if isinstance(hidden, tuple) else (y, hidden)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(case: dict[str, Any]) -> None:
    ours, theirs = pair(case)
    x, states = inputs(case)
    got, want = flat(ours(x, as_hx(states))), flat(theirs(x, as_hx(states)))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    d = [torch.randn_like(a) for a in want]
    assert [name for name, _ in ours.named_parameters()] == [
        n for n, _ in theirs.named_parameters()
    ]
    dgot = torch.autograd.grad(got, [x, *states, *ours.parameters()], d)
    dwant = torch.autograd.grad(want, [x, *states, *theirs.parameters()], d)
    torch.testing.assert_close(dgot, dwant, rtol=0, atol=1e-11)
    torch.testing.assert_close(flat(ours(x)), flat(theirs(x)), rtol=0, atol=1e-12)
    if len(states) > 1:  # torch takes a list as well
        torch.testing.assert_close(flat(ours(x, states)), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradcheck(case: dict[str, Any]) -> None:
    ours, _ = pair(case)
    names, weights = zip(*ours.named_parameters(), strict=True)
    x, states = inputs(case)
    given = [a.detach().requires_grad_() for a in (x[:3, :3], *(h[:, :3] for h in states))]

    def run(x: Any, *rest: Any) -> Any:
        named = dict(zip(names, rest[len(states) :], strict=True))
        hx = as_hx(rest[: len(states)])
        return flat(torch.func.functional_call(ours, named, (x, hx)))

    assert torch.autograd.gradcheck(run, (*given, *weights))


def test_part_of_the_gradients() -> None:
    """Only y in the loss, x without a gradient, one weight frozen; dy is expanded, not dense."""
    ours, theirs = pair(CASES[2])
    x = inputs(CASES[2])[0].detach()
    for lstm in (ours, theirs):
        lstm.weight_hh_l1.requires_grad_(False)
        lstm(x)[0].sum().backward()
    assert ours.weight_hh_l1.grad is None and x.grad is None
    for name, p in theirs.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(ours.get_parameter(name).grad, p.grad, rtol=0, atol=1e-11)


def test_trains_as_torch_does() -> None:
    """Also with weights changed behind autograd's back, and in a copy, and from a state dict."""
    losses = []
    for lstm in pair(CASES[2]):
        torch.manual_seed(2)
        x = torch.randn(6, 2, 3, dtype=torch.float64)
        optimizer = torch.optim.Adam(lstm.parameters(), lr=0.02)
        seen = []
        for step in range(20):
            loss = (lstm(x)[0] - 0.5).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step == 10:
                lstm.weight_ih_l0.data.mul_(0.5)
            seen.append(loss.item())
        losses.append(seen)
        clone = pickle.loads(pickle.dumps(copy.deepcopy(lstm)))
        torch.testing.assert_close(flat(clone(x)), flat(lstm(x)), rtol=0, atol=0)
    assert losses[0][-1] < 0.8 * losses[0][0]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-9)


def test_state_dicts_fit_both_ways() -> None:
    for case in CASES:
        ours, theirs = pair(case)
        theirs.load_state_dict(ours.state_dict())
        assert list(ours.state_dict()) == list(theirs.state_dict())


def test_dropout_follows_the_mode() -> None:
    lstm = ours_module.LSTM(3, 8, num_layers=2, dropout=0.5)
    x = torch.ones(4, 2, 3)
    assert not torch.equal(lstm(x)[0], lstm(x)[0])
    lstm.eval()
    assert torch.equal(lstm(x)[0], lstm(x)[0])


# ------------------------------------------------------------------- packed sequences, lengths


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("states", [False, True])
@pytest.mark.parametrize("sorted_", [False, True])
def test_packed_sequences(case: dict[str, Any], states: bool, sorted_: bool) -> None:
    ours, theirs = pair(case)
    lengths = [5, 3, 2, 1, 1] if sorted_ else [2, 5, 1, 3, 1]
    x, given = inputs(case)
    hx = as_hx(given) if states else None
    packed = pack_padded_sequence(
        x, torch.tensor(lengths), batch_first=case.get("batch_first", False), enforce_sorted=sorted_
    )
    got, want = ours(packed, hx), theirs(packed, hx)
    assert isinstance(got[0], PackedSequence)
    for a, b in zip(got[0], want[0]):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    torch.testing.assert_close(got[1], want[1], rtol=0, atol=1e-12)
    got, want = flat((got[0].data, got[1])), flat((want[0].data, want[1]))
    d = [torch.randn_like(a) for a in want]
    wrt = [x, *given] if states else [x]
    dgot = torch.autograd.grad(got, [*wrt, *ours.parameters()], d, retain_graph=True)
    dwant = torch.autograd.grad(want, [*wrt, *theirs.parameters()], d)
    torch.testing.assert_close(dgot, dwant, rtol=0, atol=1e-11)


def test_lengths_are_those_of_a_packed_sequence() -> None:
    ours, theirs = pair(CASES[2])
    rows = [torch.randn(n, 3, dtype=torch.float64) for n in (2, 5, 3)]
    y, hidden = theirs(pack_sequence(rows, enforce_sorted=False))
    y, _ = torch.nn.utils.rnn.pad_packed_sequence(y)
    got = ours(torch.nn.utils.rnn.pad_sequence(rows), lengths=[2, 5, 3])
    torch.testing.assert_close(got, (y, hidden), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="which has its own"):
        ours(pack_sequence(rows, enforce_sorted=False), lengths=[2, 5, 3])
    with pytest.raises(ValueError, match="left to torch"):
        ours.half()(torch.zeros(5, 3, 3, dtype=torch.float16), lengths=[2, 5, 3])


def test_unbatched() -> None:
    ours, theirs = pair(CASES[3])
    x, given = inputs(CASES[3])
    states = tuple(h[:, 0].detach() for h in given)
    with torch.no_grad():
        torch.testing.assert_close(ours(x[0], states), theirs(x[0], states), rtol=0, atol=1e-12)


# ------------------------------------------------------------------- weights that change


def follows(ours: Any, theirs: Any, change: Any) -> None:
    """After a call, the same change to both is seen by the next call."""
    x = torch.randn(5, 2, 3, dtype=next(theirs.parameters()).dtype)
    with torch.no_grad():
        before = ours(x)[0].clone()
        for module in (ours, theirs):
            change(module)
        want = theirs(x)[0]
        assert not torch.equal(want, before)
        torch.testing.assert_close(ours(x)[0], want, rtol=0, atol=1e-6)


def replace(module: Any) -> None:
    module.weight_hh_l0 = torch.nn.Parameter(module.weight_hh_l0.detach() * 2)


CHANGES = {
    "no_grad": lambda m: m.weight_hh_l0.mul_(2),
    "detach": lambda m: m.weight_hh_l0.detach().mul_(2),
    "data": lambda m: m.weight_hh_l0.data.mul_(2),
    "set data": lambda m: setattr(m.weight_hh_l0, "data", m.weight_hh_l0.data * 2),
    "an element": lambda m: m.bias_hh_l1_reverse.data[:1].add_(1e-3),
    "replaced": replace,
    "loaded": lambda m: m.load_state_dict({n: 2 * p for n, p in m.state_dict().items()}),
    "assigned": lambda m: m.load_state_dict(
        {n: 2 * p for n, p in m.state_dict().items()}, assign=True
    ),
    "vector": lambda m: torch.nn.utils.vector_to_parameters(
        2 * torch.nn.utils.parameters_to_vector(m.parameters()), m.parameters()
    ),
    "weight norm": lambda m: (
        parametrizations.weight_norm(m, "weight_hh_l0")
        .parametrizations["weight_hh_l0"]
        .original0.mul_(2)
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_no_change_of_a_weight_is_missed(change: Any) -> None:
    follows(*pair(CASES[2]), change)


def test_a_taken_data_stays_watched() -> None:
    """Somebody took `.data` once, long before, and writes to it now."""
    ours, theirs = pair(CASES[2])
    held = {id(m): m.weight_ih_l1.data for m in (ours, theirs)}
    for _ in range(2):
        follows(ours, theirs, lambda m: held[id(m)].mul_(2))
    for m in (ours, theirs):
        m.cpu()  # goes over all `.data`, and changes none
    follows(ours, theirs, lambda m: held[id(m)].mul_(2))


@pytest.mark.parametrize("kind", ["Adam", "AdamW", "SGD", "Adagrad"])
def test_a_fused_step_is_seen(kind: str) -> None:
    """torch's fused steps leave `_version` as it is."""
    ours, theirs = pair(CASES[2])
    optimizers = {
        id(m): getattr(torch.optim, kind)(m.parameters(), lr=0.1, fused=True)
        for m in (ours, theirs)
    }

    def step(module: Any) -> None:
        with torch.enable_grad():
            module(torch.ones(5, 2, 3, dtype=torch.float64))[0].sum().backward()
        optimizers[id(module)].step()

    for _ in range(2):
        follows(ours, theirs, step)


def test_weights_shared_with_other_processes_are_watched() -> None:
    ours, theirs = pair(CASES[2])
    for m in (ours, theirs):
        m.share_memory()
    views = {id(m): m.weight_ih_l1.detach().numpy() for m in (ours, theirs)}  # as another process
    follows(ours, theirs, lambda m: views[id(m)].__imul__(2))


def test_a_parameter_of_a_parameter() -> None:
    ours, _ = pair(CASES[2])
    again = torch.nn.Parameter(ours.weight_ih_l1)
    assert again.requires_grad and torch.equal(again, ours.weight_ih_l1)
    assert type(ours.weight_ih_l1.detach()) is torch.Tensor
    assert {type(a) for a in ours.state_dict().values()} == {torch.Tensor}


def test_unchanged_weights_are_not_compared_or_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = pair(CASES[2])
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    ours(x)[0].sum().backward()
    block = ours._engine._module._weights
    compared = []
    same = torch_weights._same
    monkeypatch.setattr(torch_weights, "_same", lambda a, b: compared.append(a) or same(a, b))  # type: ignore[func-returns-value]
    copy.deepcopy(ours), ours.state_dict(), pickle.dumps(ours)
    ours(x)
    assert not compared
    ours.bias_hh_l0.data  # noqa: B018
    ours(x)
    assert len(compared) == 16 and ours._engine._module._weights is block
    with torch.no_grad():
        ours.bias_hh_l0[0] = torch.nan  # whose bits are equal to themselves
    ours(x)
    block = ours._engine._module._weights
    ours(x)
    assert ours._engine._module._weights is block


def test_a_change_between_forward_and_backward() -> None:
    """The gradient is that of the weights which the forward pass had."""
    ours, theirs = pair(CASES[2])
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    want = torch.autograd.grad(theirs(x)[0].sum(), list(theirs.parameters()))
    loss = ours(x)[0].sum()
    with torch.no_grad():
        ours.weight_hh_l0.mul_(2)
    ours(x)
    torch.testing.assert_close(
        torch.autograd.grad(loss, list(ours.parameters())), want, rtol=0, atol=1e-11
    )


# ------------------------------------------------------------------- what is left to torch


def narrowed(module: torch.nn.Module, x: torch.Tensor) -> Any:
    """What comes of a call under autocast, or the message of its error."""
    try:
        with torch.autocast("cpu", torch.bfloat16):
            return module(x)
    except RuntimeError as error:
        return str(error)


def test_other_dtypes_and_modes_are_torchs() -> None:
    ours, theirs = pair(CASES[2], torch.float32)
    x = torch.randn(5, 2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing itself is deprecated
        traced = torch.jit.trace(ours, x)
    assert "lstm" in str(traced.inlined_graph)
    torch.testing.assert_close(traced(x), theirs(x))
    got, want = narrowed(ours, x), narrowed(theirs, x)
    assert type(got) is type(want)
    if isinstance(got, str):  # oneDNN has no LSTM of bfloat16 for this CPU
        assert got == want
    else:
        assert got[0].dtype is want[0].dtype
        torch.testing.assert_close(got, want)
    compiled = torch.compile(ours, backend="eager")
    torch.testing.assert_close(compiled(x), theirs(x))

    def loss(module: Any) -> Any:
        state = dict(module.named_parameters())
        return lambda x: torch.func.functional_call(module, state, (x,))[0].sum()

    torch.testing.assert_close(torch.func.grad(loss(ours))(x), torch.func.grad(loss(theirs))(x))
    with pytest.raises(ValueError, match="does not match weight dtype"):  # torch's own words
        ours(x.double())
    if not isinstance(want, str):
        assert ours.to(torch.bfloat16)(x.bfloat16())[0].dtype is torch.bfloat16
    torch.testing.assert_close(
        ours.double()(x.double())[0].float(), theirs(x)[0], rtol=0, atol=1e-2
    )


def test_twice_differentiated_is_an_error() -> None:
    ours, _ = pair(CASES[0])
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    (dx,) = torch.autograd.grad(ours(x)[0].square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


def test_a_graph_is_gone_through_once_unless_it_is_kept() -> None:
    """And what is left of it then holds no tape."""
    ours, _ = pair(CASES[0])
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    y = ours(x)[0]
    first, again = (torch.autograd.grad(y.sum(), x, retain_graph=n < 1)[0] for n in range(2))
    assert torch.equal(first, again)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(y.sum(), x)
    assert y.grad_fn.tape is None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, for itself
@pytest.mark.parametrize("grad", [True, False])
def test_forward_mode_is_torchs(grad: bool) -> None:
    ours, theirs = pair(CASES[4])
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    with forward_ad.dual_level(), torch.set_grad_enabled(grad):
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        got, want = (forward_ad.unpack_dual(m(dual)[0]).tangent for m in (ours, theirs))
        torch.testing.assert_close(got, want)


def test_dropout_follows_torchs_seed() -> None:
    lstm = ours_module.LSTM(3, 8, num_layers=2, dropout=0.5)
    x = torch.ones(4, 2, 3)

    def drawn() -> Any:
        torch.manual_seed(3)
        return lstm(x)[0]

    assert torch.equal(drawn(), drawn())
    with torch.no_grad():
        assert torch.equal(drawn(), drawn()) and not torch.equal(lstm(x)[0], lstm(x)[0])
    lstm.dropout = 0.0
    assert torch.equal(lstm(x)[0], lstm.eval()(x)[0])


def test_threads_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    lstm: Any = ours_module.LSTM(3, 8)
    x = torch.ones(4, 2, 3)
    lstm(x)
    seen = []
    module = type(lstm._engine._module)
    forward = module.forward

    def spy(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["threads"])
        return forward(*args, **kwargs)

    monkeypatch.setattr(module, "forward", spy)
    for n in (1, 2):
        torch.set_num_threads(n)
        lstm(x)
    assert seen == [1, 2]


def test_many_threads_call_one_module() -> None:
    ours, theirs = pair(CASES[2])
    x = torch.randn(20, 4, 3, dtype=torch.float64)
    want = theirs(x)[0].detach()
    bad: list[Any] = []

    def work() -> None:
        for _ in range(20):
            y = ours(x)[0]
            y.sum().backward()
            if not torch.allclose(y, want, rtol=0, atol=1e-12):
                bad.append(y)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not bad


# ------------------------------------------------------------------- whole models


class Tagger(torch.nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(11, 3)
        self.encoder = torch.nn.ModuleList([torch.nn.LSTM(3, 4, bidirectional=True)])
        self.decoder = torch.nn.GRU(8, 5, num_layers=2, batch_first=True)
        self.again = self.decoder
        self.head = torch.nn.Linear(5, 2)

    def forward(self, ids: Any) -> Any:
        y, _ = self.encoder[0](self.embed(ids))
        y, _ = self.decoder(y.transpose(0, 1))
        return self.head(self.again(torch.cat([y, y[..., :3]], -1))[0])


def test_accelerate_a_copy(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = Tagger()
    ids = torch.randint(11, (7, 3))
    with caplog.at_level(logging.INFO, logger="cylstm"):
        fast = ours_module.accelerate(model)
    told = ours_module.report(fast)
    assert list(told.replaced) == ["encoder.0", "decoder"] and not told.left
    assert str(told) in caplog.text and "LSTM(3, 4, bidirectional=True)" in str(told)
    assert type(model.decoder) is torch.nn.GRU and isinstance(fast.decoder, torch.nn.GRU)
    assert fast.again is fast.decoder
    assert list(ours_module.report(model).left) == ["encoder.0", "decoder"]
    for one in (model, fast):
        one(ids).square().sum().backward()
    torch.testing.assert_close(fast(ids), model(ids), rtol=0, atol=1e-6)
    for a, b in zip(fast.parameters(), model.parameters()):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=1e-5)


def test_accelerate_in_place_keeps_the_optimiser() -> None:
    models = []
    for accelerated in (False, True):
        torch.manual_seed(0)
        model = Tagger()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        called: list[Any] = []
        model.decoder.register_forward_hook(lambda *a, called=called: called.append(a))
        if accelerated:
            assert ours_module.accelerate(model, inplace=True) is model
        ids = torch.randint(11, (7, 3))
        for _ in range(5):
            optimizer.zero_grad()
            model(ids).square().sum().backward()
            optimizer.step()
        assert called
        models.append(model)
    for a, b in zip(*(m.parameters() for m in models)):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


class Own(torch.nn.GRU):  # type: ignore[misc]
    pass


def test_what_is_not_replaced_says_why() -> None:
    with pytest.warns(DeprecationWarning):
        scripted = torch.jit.script(torch.nn.LSTM(2, 3))
    model = torch.nn.ModuleDict(
        {
            "own": Own(2, 3),
            "narrow": torch.nn.LSTM(2, 3).half(),
            "meta": torch.nn.LSTM(2, 3, device="meta"),
            "normed": parametrizations.weight_norm(torch.nn.LSTM(2, 3), "weight_hh_l0"),
            "scripted": scripted,
            "good": torch.nn.LSTM(2, 3),
        }
    )
    ours_module.accelerate(model, inplace=True)
    told = ours_module.report(model)
    assert list(told.replaced) == ["good"]
    for name, why in {
        "own": "a class of its own",
        "narrow": "torch.float16",
        "meta": "on meta",
        "normed": "a class of its own",
        "scripted": "RecursiveScriptModule",
    }.items():
        assert why in told.left[name], told.left[name]
    with pytest.warns(UserWarning, match="nothing was replaced"):
        ours_module.accelerate(torch.nn.Linear(2, 3))
    with pytest.raises(TypeError, match="expected a torch.nn.Module"):
        ours_module.accelerate(3)
