"""Property sweep of ch5clf.loss against PyTorch: forward and backward, every dtype, every option, and the error messages.

Deterministic: examples are derived from the tests themselves, not from a clock, so ten runs are the same run.
CH5CLF_EXAMPLES=5000 looks harder than the everyday 300 examples a test.
"""
import math
import os

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from ch5clf import loss as L

settings.register_profile('ch5clf', derandomize=True, deadline=None, database=None, max_examples=int(os.environ.get('CH5CLF_EXAMPLES', 300)),
                          suppress_health_check=list(HealthCheck))
settings.load_profile('ch5clf')

HALF = [torch.float16, torch.bfloat16]
# (rtol, atol): next to 0 a relative bound means nothing, since PyTorch itself rounds 1 + small there.
TOLERANCE = {torch.float64: (1e-12, 1e-14), torch.float32: (1e-5, 1e-6)}
SCALES = [1e-3, 1., 10., 100., 1e4]


@pytest.fixture(autouse=True, scope='module')
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def logits_of(shape, scale, seed, dtype=torch.float64):
    "Uniform in ±scale, a third of them rounded so that ties occur."
    g = torch.Generator().manual_seed(seed)
    x = (torch.rand(shape, generator=g, dtype=torch.float64) * 2 - 1) * scale
    if seed % 3 == 0: x = x.round()
    return x.to(dtype)


@st.composite
def cases(draw, soft=None):
    "A whole call of cross-entropy: logits, target and options, as float64."
    seed = draw(st.integers(0, 2**31 - 1))
    classes = draw(st.integers(1, 12))
    extra = draw(st.lists(st.integers(1, 4), max_size=2))
    items = draw(st.one_of(st.integers(1, 6), st.sampled_from([0, None])))
    shape = [classes] if items is None else [items, classes, *extra]
    dim = 0 if items is None else 1
    g = torch.Generator().manual_seed(seed + 1)
    x = logits_of(shape, draw(st.sampled_from(SCALES)), seed)
    is_soft = draw(st.booleans()) if soft is None else soft
    kw = dict(reduction=draw(st.sampled_from(['mean', 'sum', 'none'])))
    if draw(st.booleans()): kw['weight'] = torch.rand(classes, generator=g, dtype=torch.float64) * 3 + .05
    if draw(st.booleans()): kw['label_smoothing'] = draw(st.sampled_from([.01, .1, .5, 1.]))
    if is_soft:
        target = torch.softmax(torch.rand(shape, generator=g, dtype=torch.float64) * 5, dim)
    else:
        rest = shape[:dim] + shape[dim+1:]
        target = torch.randint(0, classes, rest, generator=g)
        kind = draw(st.sampled_from(['none', 'marked', 'a class', 'all']))
        if kind == 'marked': target = torch.where(torch.rand(rest, generator=g) < .4, -100, target)
        if kind == 'a class': kw['ignore_index'] = draw(st.integers(0, classes - 1))
        if kind == 'all': target = torch.full_like(target, -100)
    return x, target, kw


def as_dtype(dtype, target, kw):
    kw = {k: v.to(dtype) if isinstance(v, torch.Tensor) else v for k, v in kw.items()}
    return target.to(dtype) if target.is_floating_point() else target, kw


def value_and_grad(f, x, upstream):
    x = x.detach().clone().requires_grad_()
    y = f(x)
    grad, = torch.autograd.grad(y, x, upstream(y), allow_unused=True)
    return y.detach(), torch.zeros_like(x) if grad is None else grad


def from_above(seed=0, through=None):
    def upstream(y):
        g = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return g.to(through or y.dtype).to(y.dtype)
    return upstream


def both_ways(ours, theirs, x, seed=0, through=None):
    "The values and gradients of both, the same gradient flowing in from above (rounded to the dtype `through`)."
    upstream = from_above(seed, through)
    return value_and_grad(ours, x, upstream), value_and_grad(theirs, x, upstream)


def assert_same(ours, theirs, dtype, scale=1):
    "Equal up to the dtype's tolerance; `scale`: the largest weight, which multiplies every rounding error."
    rtol, atol = TOLERANCE[dtype]
    atol = atol * scale
    for what, a, b in zip(('value', 'gradient'), ours, theirs):
        assert a.dtype == b.dtype and a.shape == b.shape, what
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol, equal_nan=True, msg=lambda m: f'{what}: {m}')


def ulp(x, dtype):
    "The spacing of `dtype` at |x|."
    info = torch.finfo(dtype)
    exponent = x.abs().double().clamp(min=info.tiny).log2().floor()
    return info.eps * 2 ** exponent


def assert_as_good(ours, theirs, exact, dtype, what):
    """Our error is at most PyTorch's own in this dtype, plus 2 ulp, plus the float32 in which we compute; finite wherever the true value fits.

    The last counts only next to 0: where terms of size 1 cancel, float32 leaves 1e-7, which is 1/60,000 of bfloat16's step at 1."""
    ours, theirs, exact = ours.double(), theirs.double(), exact.double()
    fits = exact.abs() <= torch.finfo(dtype).max
    assert torch.isfinite(ours[fits]).all(), f'{what}: not finite'
    error, float32 = (ours - exact).abs(), 4 * torch.finfo(torch.float32).eps * exact.where(fits, 0).abs().max().clamp(min=1)
    allowed = (theirs - exact).abs().nan_to_num(nan=math.inf, posinf=math.inf) + 2 * ulp(exact, dtype) + float32
    bad = fits & ~(error <= allowed)
    assert not bad.any(), f'{what}: ours {ours[bad]}, PyTorch {theirs[bad]}, exact {exact[bad]}'


# float64 and float32: equal to PyTorch

@pytest.mark.parametrize('dtype', list(TOLERANCE))
@given(case=cases())
def test_cross_entropy_is_pytorchs(dtype, case):
    x, target, kw = case
    x = x.to(dtype)
    target, kw = as_dtype(dtype, target, kw)
    ours, theirs = both_ways(lambda x: L.cross_entropy(x, target, **kw), lambda x: F.cross_entropy(x, target, **kw), x)
    assert_same(ours, theirs, dtype)


@given(case=cases())
def test_written_gradient_is_autograds(case):
    x, target, kw = case
    expected = value_and_grad(lambda x: F.cross_entropy(x, target, **kw).sum(), x, torch.ones_like)[1]
    ours = L.cross_entropy_grad(x, target, **kw)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-14, equal_nan=True)
    dim = 0 if x.dim() == 1 else 1
    pushes = ours.nan_to_num().sum(dim)
    if target.is_floating_point() and 'label_smoothing' not in kw: atol = 1e-13 * max(1, x.shape[dim])
    else: atol = 1e-13
    torch.testing.assert_close(pushes, torch.zeros_like(pushes), rtol=0, atol=atol)


@pytest.mark.parametrize('dtype', list(TOLERANCE))
@given(case=cases(soft=False))
def test_nll_is_pytorchs(dtype, case):
    x, target, kw = case
    kw.pop('label_smoothing', None)
    logp = x.log_softmax(0 if x.dim() == 1 else 1).to(dtype)
    target, kw = as_dtype(dtype, target, kw)
    ours, theirs = both_ways(lambda x: L.nll(x, target, **kw), lambda x: F.nll_loss(x, target, **kw), logp)
    assert_same(ours, theirs, dtype)


shapes = st.lists(st.integers(0, 5), min_size=0, max_size=4)

@pytest.mark.parametrize('dtype', list(TOLERANCE))
@pytest.mark.parametrize('name', ['softmax', 'log_softmax'])
@given(shape=shapes, where=st.integers(0, 7), scale=st.sampled_from(SCALES), seed=st.integers(0, 2**31 - 1))
def test_softmaxes_are_pytorchs(dtype, name, shape, where, scale, seed):
    dim = where % (2 * max(len(shape), 1)) - max(len(shape), 1)
    x = logits_of(shape, scale, seed, dtype)
    ours, theirs = both_ways(lambda x: getattr(L, name)(x, dim), lambda x: getattr(F, name)(x, dim=dim), x, seed)
    assert_same(ours, theirs, dtype)
    if name == 'softmax' and x.numel():
        p = ours[0]
        assert ((p >= 0) & (p <= 1 + 1e-6)).all()
        torch.testing.assert_close(p.sum(dim), torch.ones_like(p.sum(dim)))


@st.composite
def yes_no(draw):
    seed, shape = draw(st.integers(0, 2**31 - 1)), draw(st.lists(st.integers(0, 5), min_size=1, max_size=4))
    g = torch.Generator().manual_seed(seed)
    x = logits_of(shape, draw(st.sampled_from(SCALES)), seed)
    target = torch.rand(shape, generator=g, dtype=torch.float64)
    if draw(st.booleans()): target = target.round()
    kw = dict(reduction=draw(st.sampled_from(['mean', 'sum', 'none'])))
    if draw(st.booleans()): kw['weight'] = torch.rand(shape[-1], generator=g, dtype=torch.float64) * 2
    if draw(st.booleans()): kw['pos_weight'] = torch.rand(shape[-1], generator=g, dtype=torch.float64) * 4
    return x, target, kw

@pytest.mark.parametrize('dtype', list(TOLERANCE))
@pytest.mark.parametrize('name', ['binary_loss', 'multilabel_loss'])
@given(case=yes_no())
def test_yes_no_losses_are_pytorchs(dtype, name, case):
    "The measure is PyTorch's float64: two ways in float32 differ by up to 3e-4 of a small loss with `pos_weight`."
    x, target, kw = case
    low, low_kw = as_dtype(dtype, target, kw)
    exact, exact_kw = as_dtype(torch.float64, low, low_kw)
    ours = value_and_grad(lambda x: getattr(L, name)(x, low, **low_kw), x.to(dtype), from_above(through=dtype))
    theirs = value_and_grad(lambda x: F.binary_cross_entropy_with_logits(x, exact, **exact_kw), x.to(dtype).double(), from_above(through=dtype))
    assert_same(ours, [v.to(dtype) for v in theirs], dtype, scale=8) # weights up to 2 times 4


# float16 and bfloat16: at least as good as PyTorch, measured against its float64

def halves(ours, theirs, x, dtype, lower, name):
    "`lower(dtype)` gives the remaining arguments in that dtype."
    low = both_ways(lambda x: ours(x, *lower(dtype)), lambda x: theirs(x, *lower(dtype)), x.to(dtype))
    exact = both_ways(lambda x: ours(x, *lower(dtype, exact=True)), lambda x: theirs(x, *lower(dtype, exact=True)), x.to(dtype).double(), through=dtype)[1]
    for k, what in enumerate(('value', 'gradient')):
        a, b, c = low[0][k], low[1][k], exact[k]
        assert a.dtype == b.dtype == dtype, what
        assert_as_good(a, b, c, dtype, f'{name} {what}')


def same_numbers(target, kw):
    "Arguments rounded to the dtype, then, for the exact result, the rounded ones widened again."
    def lower(dtype, exact=False):
        t, k = as_dtype(dtype, target, kw)
        return as_dtype(torch.float64, t, k) if exact else (t, k)
    return lower


@pytest.mark.parametrize('dtype', HALF)
@given(case=cases())
def test_cross_entropy_in_half_precision(dtype, case):
    x, target, kw = case
    if not x.numel(): return
    if not target.is_floating_point() and not ((target != -100) & (target != kw.get('ignore_index', -100))).any(): return
    halves(lambda x, t, k: L.cross_entropy(x, t, **k), lambda x, t, k: F.cross_entropy(x, t, **k), x, dtype, same_numbers(target, kw), 'cross_entropy')


@pytest.mark.parametrize('dtype', HALF)
@pytest.mark.parametrize('name', ['softmax', 'log_softmax'])
@given(shape=st.lists(st.integers(1, 6), min_size=1, max_size=4), where=st.integers(0, 3), scale=st.sampled_from(SCALES), seed=st.integers(0, 2**31 - 1))
def test_softmaxes_in_half_precision(dtype, name, shape, where, scale, seed):
    dim = where % len(shape)
    halves(lambda x: getattr(L, name)(x, dim), lambda x: getattr(F, name)(x, dim=dim), logits_of(shape, scale, seed), dtype, lambda *a, **k: (), name)


@pytest.mark.parametrize('dtype', HALF)
@given(case=yes_no())
def test_yes_no_losses_in_half_precision(dtype, case):
    x, target, kw = case
    if not x.numel(): return
    halves(lambda x, t, k: L.binary_loss(x, t, **k), lambda x, t, k: F.binary_cross_entropy_with_logits(x, t, **k), x, dtype, same_numbers(target, kw), 'binary_loss')


def test_finite_where_pytorchs_half_overflows():
    x = (torch.randn(8, 12, generator=torch.Generator().manual_seed(0)) * 100).half()
    t = torch.arange(8)
    theirs, ours = F.cross_entropy(x, t, label_smoothing=.1), L.cross_entropy(x, t, label_smoothing=.1)
    exact = F.cross_entropy(x.double(), t, label_smoothing=.1)
    assert torch.isfinite(ours) and abs(ours.double() - exact) <= 2 * ulp(exact, torch.float16)
    if torch.isinf(theirs): assert exact < torch.finfo(torch.float16).max


def test_autocast_gives_float32():
    x, t = torch.randn(4, 3, dtype=torch.bfloat16), torch.tensor([0, 1, 2, 0])
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert L.cross_entropy(x, t).dtype == F.cross_entropy(x, t).dtype == torch.float32


# further than one derivative, masked classes, other layouts

@pytest.mark.parametrize('options', [{}, {'label_smoothing': .2}, {'ignore_index': 1}, {'weight': torch.tensor([.5, 2., 1., .1]).double()}])
@pytest.mark.parametrize('reduction', ['mean', 'none'])
def test_twice_differentiable(options, reduction):
    g = torch.Generator().manual_seed(3)
    x = torch.randn(5, 4, 2, generator=g, dtype=torch.float64, requires_grad=True)
    t = torch.randint(0, 4, (5, 2), generator=g)
    f = lambda x: L.cross_entropy(x, t, reduction=reduction, **options)
    assert gradcheck(f, x) and gradgradcheck(f, x)
    torch.testing.assert_close(torch.autograd.functional.hessian(lambda x: f(x).sum(), x),
                               torch.autograd.functional.hessian(lambda x: F.cross_entropy(x, t, reduction=reduction, **options).sum(), x))


def test_twice_differentiable_others():
    g = torch.Generator().manual_seed(4)
    x = torch.randn(3, 4, generator=g, dtype=torch.float64, requires_grad=True)
    p = torch.rand(3, 4, generator=g, dtype=torch.float64, requires_grad=True)
    w = torch.rand(4, generator=g, dtype=torch.float64, requires_grad=True)
    t = (torch.rand(3, 4, generator=g) > .5).double()
    for f, inputs in [(lambda x: L.softmax(x, 0), (x,)), (lambda x: L.log_softmax(x, 1), (x,)), (lambda x: L.binary_loss(x, t), (x,)),
                      (lambda x, p, w: L.cross_entropy(x, p, w, label_smoothing=.1), (x, p, w)),
                      (lambda x: L.nll(x, torch.tensor([3, 0, 1])), (x,))]:
        assert gradcheck(f, inputs) and gradgradcheck(f, inputs)


def test_third_derivative():
    x, t = torch.randn(2, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64), torch.tensor([2, 0])
    def third(f):
        y = x.clone().requires_grad_()
        g = f(y, t)
        for _ in range(3): g = torch.autograd.grad((g * g.detach().cos()).sum() + (g ** 2).sum(), y, create_graph=True)[0]
        return g.detach()
    torch.testing.assert_close(third(L.cross_entropy), third(F.cross_entropy))


def test_masked_classes():
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(6))
    x[:, 2] = -math.inf
    t = torch.tensor([0, 1, 3, 4])
    assert_same(*both_ways(lambda x: L.cross_entropy(x, t), lambda x: F.cross_entropy(x, t), x), torch.float32)
    assert_same(*both_ways(lambda x: L.softmax(x), lambda x: F.softmax(x, -1), x), torch.float32)
    assert torch.equal(L.cross_entropy(x, torch.full((4,), 2), reduction='none'), torch.full((4,), math.inf))


def test_logits_and_targets_are_left_alone():
    x, t = torch.randn(4, 5), torch.tensor([0, -100, 3, 4])
    before = x.clone(), t.clone()
    for f in (L.cross_entropy, L.cross_entropy_grad, L.nll): f(x, t)
    L.softmax(x), L.log_softmax(x), L.binary_loss(x, (x > 0).float()), L.working_table(x[0], 2)
    assert torch.equal(x, before[0]) and torch.equal(t, before[1])


def test_any_layout_and_whole_number_dtype():
    x, t = torch.randn(3, 4, 6).transpose(1, 2), torch.randint(0, 6, (3, 4))
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
        torch.testing.assert_close(L.cross_entropy(x, t.to(dtype)), F.cross_entropy(x, t))


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device here')
def test_on_cuda():
    x, t = torch.randn(16, 10, device='cuda'), torch.randint(0, 10, (16,), device='cuda')
    assert_same(*both_ways(lambda x: L.cross_entropy(x, t), lambda x: F.cross_entropy(x, t), x), torch.float32)
    with pytest.raises(IndexError, match='10 classes'): L.cross_entropy(x, t + 10)


# errors say what was given and what is expected

X, T = torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])

@pytest.mark.parametrize('call, error, says', [
    (lambda: L.cross_entropy(X, T + 1), IndexError, ['class 3', 'at 2', '3 classes', '0 to 2']),
    (lambda: L.cross_entropy(X, T - 1), IndexError, ['class -1', 'at 0', '3 classes']),
    (lambda: L.cross_entropy_grad(X, T + 5), IndexError, ['cross_entropy_grad', 'class 7', '3 classes']),
    (lambda: L.nll(X, T + 1), IndexError, ['nll', 'class 3', '3 classes']),
    (lambda: L.cross_entropy(X, T.float()), TypeError, ['float32', '(4,)', 'target.long()']),
    (lambda: L.cross_entropy(X, T > 0), TypeError, ['bool', 'target.long()']),
    (lambda: L.cross_entropy(X, [0, 1, 2, 0]), TypeError, ['list', 'torch.tensor']),
    (lambda: L.cross_entropy(X, T[:3]), ValueError, ['(3,)', '(4, 3)', '(4,)']),
    (lambda: L.cross_entropy(X, X.long()), ValueError, ['int64', '(4, 3)', '(4,)']),
    (lambda: L.cross_entropy(X, X[:, :2]), ValueError, ['(4, 2)', '(4, 3)', 'probabilities']),
    (lambda: L.cross_entropy(X, X, ignore_index=1), ValueError, ['ignore_index=1', 'probabilities']),
    (lambda: L.cross_entropy(X, T, reduction='avg'), ValueError, ["'avg'", "'mean'", "'sum'", "'none'"]),
    (lambda: L.binary_loss(X, X, reduction='avg'), ValueError, ["'avg'", "'mean'"]),
    (lambda: L.cross_entropy(X, T, weight=torch.ones(4)), ValueError, ['(4,)', '3 classes']),
    (lambda: L.cross_entropy(X, T, weight=[1, 1, 1]), ValueError, ['list', '3 classes']),
    (lambda: L.cross_entropy(X, T, label_smoothing=1.5), ValueError, ['1.5', '0 to 1']),
    (lambda: L.cross_entropy(X.long(), T), TypeError, ['int64', 'logits.float()']),
    (lambda: L.cross_entropy([[1., 2.]], T), TypeError, ['list', 'torch.tensor']),
    (lambda: L.cross_entropy(torch.tensor(1.), torch.tensor(0)), ValueError, ['single number', '(classes,)']),
    (lambda: L.cross_entropy(torch.zeros(2, 0), T[:2]), IndexError, ['0 classes']),
    (lambda: L.nll(X, X), TypeError, ['float32', 'class numbers']),
    (lambda: L.softmax(X, 2), IndexError, ['dim is 2', '(4, 3)', '-2 to 1']),
    (lambda: L.softmax(X.int()), TypeError, ['int32', 'float()']),
    (lambda: L.log_softmax(X, -3), IndexError, ['dim is -3', '-2 to 1']),
    (lambda: L.binary_loss(X[:, 0], X), ValueError, ['(4,)', '(4, 3)', 'same shape']),
    (lambda: L.binary_loss(X, X + 2), ValueError, ['from 2 to 2', 'expected 0']),
    (lambda: L.binary_loss(X, X, weight=torch.ones(2)), ValueError, ['weight', '(2,)', '(4, 3)']),
    (lambda: L.binary_loss(X, X, pos_weight=torch.ones(4)), ValueError, ['pos_weight', '(4,)', '(4, 3)']),
    (lambda: L.cross_entropy(X, T, weight=torch.ones(3, requires_grad=True)), ValueError, ['requires a gradient', 'weight.detach()']),
    (lambda: L.multilabel_loss(X, T), ValueError, ['(4,)', 'one_hot']),
    (lambda: L.working_table(X[None]), ValueError, ['(1, 4, 3)', '(classes,)']),
    (lambda: L.working_table(X[0], names=['cat']), ValueError, ['1 names', '3 classes']),
    (lambda: L.working_table(X[0], 3), IndexError, ['working_table', 'class 3', '3 classes']),
    (lambda: L.working_table(X, [0, 1]), ValueError, ['working_table', '(2,)', '(4, 3)']),
])
def test_errors_name_the_thing_the_rule_and_the_remedy(call, error, says):
    with pytest.raises(error) as caught: call()
    for words in says: assert words in str(caught.value)


# the columns of a worked example

def test_working_table():
    table = L.working_table(torch.tensor([.5, -1.5, 2.]), target=2, names=['a', 'b', 'c'])
    assert list(table.columns) == ['logit', 'exp', 'softmax', 'target', '-log softmax', 'gradient'] and list(table.index) == ['a', 'b', 'c']
    assert table['exp'].round(2).tolist() == [1.65, .22, 7.39] and table['softmax'].round(2).tolist() == [.18, .02, .8]
    assert table['softmax'].sum() == pytest.approx(1) and table['gradient'].sum() == pytest.approx(0, abs=1e-12)
    assert list(L.working_table(torch.tensor([1000., 0.]))['softmax']) == [1., 0.]
    batch = L.working_table(torch.zeros(2, 3), [0, 2])
    assert batch.index.names == ['item', 'class'] and len(batch) == 6
    soft = L.working_table(torch.zeros(2), torch.tensor([.25, .75]))
    assert soft['gradient'].tolist() == [.25, -.25]
