"""ch5clf.memory, precision, growth: what a notebook cannot test. Faults in the middle of a step, states bit for bit, devices that are not here."""
import copy
import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.optimizer import Adam, OptimWrapper
from torch import nn

from ch5clf import growth, memory, precision
from ch5clf.deeper import AutoPrecision, TimeBudget, anatomy, grow, largest_batch, mixed_precision, training_memory

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device here')
mps = pytest.mark.skipif(not torch.backends.mps.is_available(), reason='no MPS device here')


class Small(nn.Module):
    "Convolution, batch-norm, dropout, linear; runs out of memory above `most` pictures."
    def __init__(self, most=None, raises=torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB')):
        super().__init__()
        self.most, self.raises, self.seen = most, raises, []
        self.conv, self.bn, self.drop, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(.2), nn.Linear(4, 3)
    def forward(self, x):
        if self.most is not None and len(x) > self.most: raise self.raises
        c = self.conv(x)
        self.seen.append((c.dtype, self.training, torch.is_grad_enabled()))
        return self.head(self.drop(F.relu(self.bn(c)).mean((2, 3))))


def loaders(n=40, bs=8, device='cpu'):
    torch.manual_seed(0)
    items = [(torch.randn(3, 10, 10), torch.tensor(i % 3)) for i in range(n)]
    return DataLoaders(DataLoader(items, bs=bs, shuffle=True, drop_last=True), DataLoader(items[:12], bs=bs), device=torch.device(device))


def learner(model=None, device='cpu', **kwargs):
    dls = loaders(device=device)
    torch.manual_seed(1)
    learn = Learner(dls, model or Small(), loss_func=nn.CrossEntropyLoss(), **kwargs)
    learn.remove_cbs([cb for cb in learn.cbs if cb.name == 'progress'])
    learn.logger = lambda *_: None
    return learn


def state(learn):
    "All that a training depends on, as plain values."
    opt, inner = learn.opt, getattr(learn.opt, 'opt', learn.opt)
    return dict(
        tensors=[t.detach().clone() for t in (*learn.model.parameters(), *learn.model.buffers())],
        grads=[None if p.grad is None else p.grad.clone() for p in learn.model.parameters()],
        flags=[p.requires_grad for p in learn.model.parameters()], modes=[m.training for m in learn.model.modules()],
        opt=None if opt is None else copy.deepcopy([dict(inner.state[p]) if p in inner.state else None for p in learn.model.parameters()]), hypers=None if opt is None else copy.deepcopy(list(opt.hypers)),
        rng=(random.getstate(), torch.get_rng_state(), np.random.get_state()[1]), loaders=[dl.rng.getstate() for dl in learn.dls.loaders],
        cbs=[cb.name for cb in learn.cbs], forward='forward' in vars(learn.model), autocast=torch.is_autocast_enabled('cpu'))


def same(a, b):
    if isinstance(a, (torch.Tensor, np.ndarray)): return type(a) is type(b) and a.shape == b.shape and bool((a == b).all())
    if isinstance(a, dict): return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(same, a, b))
    return a == b


# --- anatomy

def test_anatomy_counts_what_the_names_count():
    table = anatomy(['resnet18', 'resnet34', 'resnet50', 'resnet101'], size=64)
    assert table.layers.tolist() == [18, 34, 50, 101]
    assert (table.convolutions + table.linear - table.layers).tolist() == [3, 3, 4, 4]  # one in each shortcut that changes shape


@pytest.mark.parametrize('size', [32, 65, 224])
def test_multiply_adds_by_hand(size):
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    before = copy.deepcopy(model.state_dict())
    row, side = anatomy(model, size).iloc[0], (size + 1)//2
    assert row.multiply_adds == side**2*8*27 + side**2*8*9 + 40
    assert (row.layers, row.convolutions, row.depthwise, row.batchnorms, row.linear) == (3, 2, 1, 1, 1)
    assert row.parameters == sum(p.numel() for p in model.parameters())
    assert same(before, model.state_dict()) and model[0].weight.device.type == 'cpu'


def test_anatomy_agrees_with_real_tensors():
    model = Small()
    x = torch.randn(2, 3, 20, 20)
    with memory.kept_for_backward(model) as kept: model(x)
    assert anatomy(model, 20).activations_MB.iloc[0] == sum(kept.values())/2e6


@pytest.mark.parametrize('bad', ['resnet51', 7, None])
def test_anatomy_refuses(bad):
    with pytest.raises(ValueError, match='architecture'): anatomy(bad)


# --- mixed precision

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_forward_is_half_and_loss_is_float32(dtype):
    learn, losses = learner(), []
    loss_func = learn.loss_func
    learn.loss_func = lambda p, y: losses.append((p.dtype, torch.is_autocast_enabled('cpu'))) or loss_func(p, y)
    cb = mixed_precision(learn, dtype)
    learn.fit(1, 1e-3)
    assert {d for d, *_ in learn.model.seen} == {dtype}
    assert {(training, grad) for _, training, grad in learn.model.seen} == {(True, True), (False, False)}, 'validation is cast too'
    assert set(losses) == {(torch.float32, False)}
    assert all(p.dtype == torch.float32 and p.grad is None or p.grad.dtype == torch.float32 for p in learn.model.parameters())
    assert cb.scaler is None and learn.auto_precision is cb
    learn.model.seen.clear()
    preds, _ = learn.get_preds()
    assert preds.dtype == torch.float32 and {d for d, *_ in learn.model.seen} == {dtype}
    learn.model.seen.clear()
    mixed_precision(learn, torch.float32)
    learn.fit(1)
    assert {d for d, *_ in learn.model.seen} == {torch.float32} and sum(isinstance(c, AutoPrecision) for c in learn.cbs) == 1


def test_choice_on_a_cpu_says_why(monkeypatch, capsys):
    monkeypatch.setattr(precision, 'cpu_units', lambda: [])
    cb = mixed_precision(learner())
    assert cb.dtype == torch.float32 and 'no bfloat16 units' in repr(cb) and repr(cb) in capsys.readouterr().out
    assert 'cost time' in mixed_precision(learner(), torch.bfloat16).why
    monkeypatch.setattr(precision, 'cpu_units', lambda: ['amx_bf16'])
    cb = mixed_precision(learner())
    assert cb.dtype == torch.bfloat16 and 'amx_bf16' in cb.why


def test_choice_on_devices_that_are_not_here(monkeypatch):
    for fast, capability, dtype, says in [(True, (8, 0), torch.bfloat16, 'no scaling'), (False, (7, 5), torch.float16, 'scaled'), (False, (6, 1), torch.float16, 'time hardly')]:
        monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda including_emulation=True: including_emulation or fast)
        monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda: capability)
        monkeypatch.setattr(torch.cuda, 'get_device_name', lambda: 'a card')
        chosen, why = precision.precision_for('cuda', None)
        assert chosen == dtype and says in why
    with pytest.raises(ValueError, match='a card has no bfloat16 units; take dtype=torch.float16'): precision.precision_for('cuda', torch.bfloat16)
    assert precision.precision_for('mps', None)[0] == torch.float16
    assert precision.precision_for('meta', None)[0] == torch.float32


@pytest.mark.parametrize('bad', [torch.int8, 'half precision', 16])
def test_bad_dtype(bad):
    with pytest.raises(ValueError, match='torch.float16'): mixed_precision(learner(), bad)


def test_not_beside_fastais_own():
    with pytest.raises(ValueError, match='to_fp32'): mixed_precision(learner(cbs=MixedPrecision()))


def gradients(cbs, dtype, scale=1.):
    "The first update's gradients, right before the optimiser sees them."
    learn, seen = learner(opt_func=Adam), []
    learn.model.drop.p = 0.
    loss_func = learn.loss_func
    learn.loss_func = lambda p, y: loss_func(p, y)*scale
    mixed_precision(learn, dtype)
    learn.create_opt()
    step = learn.opt.step
    learn.opt.step = lambda: (seen.append(torch.cat([p.grad.flatten() for p in learn.model.parameters()])), step())
    random.seed(3); learn.dls.train.rng = random.Random(3); torch.manual_seed(3)
    learn.fit(1, 1e-4, cbs=cbs)
    return seen


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_accumulation_and_clipping(dtype):
    plain, half = (gradients([GradientAccumulation(16), GradientClip(.01)], d) for d in (torch.float32, dtype))
    assert len(plain) == len(half) == 2, 'five batches of 8 make two updates of 16'
    for a, b in zip(plain, half):
        assert abs(b.norm() - .01) < 1e-4, 'clipped at the true size, not at the scaled one'
        assert (a - b).norm() < .05*a.norm()


def test_scaling_saves_small_gradients():
    tiny = 2.**-22
    exact, scaled = gradients([], torch.float32, tiny)[0], gradients([], torch.float16, tiny)[0]
    assert (exact - scaled).norm() < .05*exact.norm()
    model, x, y = Small(), torch.randn(8, 3, 10, 10), torch.arange(8) % 3
    with torch.autocast('cpu', torch.float16): pred = model(x)
    (F.cross_entropy(pred.float(), y)*tiny).backward()
    assert (model.conv.weight.grad == 0).float().mean() > .5, 'without scaling most are gone'


def test_updates_with_infinite_gradients_are_left_out():
    learn, n = learner(), 0
    cb, loss_func = mixed_precision(learn, torch.float16), learn.loss_func
    def at_times_infinite(p, y):
        nonlocal n
        n += learn.model.training
        return loss_func(p, y)*(math.inf if n == 2 and learn.model.training else 1)
    learn.loss_func = at_times_infinite
    learn.fit(1, 1e-3)
    assert cb.skipped == 1 and all(p.isfinite().all() for p in learn.model.parameters())


def small_set(n, lr, epochs=2, times=300.):
    "A learner on few pictures whose gradients are large, trained in float16; its callback."
    learn = learner(Unbounded())
    learn.dls.train.dataset[:] = [(x*times, y) for x, y in learn.dls.train.dataset[:n]]
    learn.dls.train.n = n
    cb = mixed_precision(learn, torch.float16)
    before = [p.detach().clone() for p in learn.model.parameters()]
    learn.fit(epochs, lr)
    return learn, cb, [not torch.equal(a, b) for a, b in zip(before, learn.model.parameters())]


class Unbounded(Small):
    "No batch-norm, so that gradients grow with the pictures."
    def forward(self, x):
        c = self.conv(x)
        self.seen.append((c.dtype, self.training, torch.is_grad_enabled()))
        return self.head(F.relu(c).mean((2, 3)))


@pytest.mark.parametrize('n', [8, 16, 32])
@pytest.mark.parametrize('times', [1., 100., 1000., 10000.])
def test_a_small_set_trains_from_the_first_update_on(n, times, capsys):
    learn, cb, moved = small_set(n, 1e-7, times=times)
    assert cb.updates == 2*(n//8) and cb.skipped <= cb.updates//8, 'a scale of 65,536 loses every one of the first updates'
    assert any(moved) and 0 < cb.scale <= 2**16
    assert 'left out' not in capsys.readouterr().out


def test_the_scale_is_kept_between_fits(monkeypatch):
    learn, cb, _ = small_set(16, 1e-7, times=1000.)
    first, tries = cb.scale, []
    assert first < 2**16
    monkeypatch.setattr(precision, 'first_scale', lambda *a: tries.append(a) or 2.**16)
    for _ in range(3):
        learn.fit(1, 1e-7)
        assert cb.scale == first and cb.skipped == 0 and not tries
    cb = mixed_precision(learn, torch.float16)
    learn.fit(1, 1e-7)
    assert len(tries) == 1 and cb.skipped == 2, 'a new callback looks anew'


@pytest.mark.parametrize('every, says', [(1, 'FloatingPointError'), (2, True), (5, True), (10, False), (11, False)])
def test_too_many_skipped_updates_are_said(every, says, capsys):
    learn, n = learner(), 0
    cb, loss_func = mixed_precision(learn, torch.float16), learn.loss_func
    def at_times_infinite(p, y):
        nonlocal n
        n += learn.model.training
        return loss_func(p, y)*(math.inf if learn.model.training and n % every == 0 else 1)
    learn.loss_func = at_times_infinite
    capsys.readouterr()
    if every == 1:
        with pytest.raises(FloatingPointError): learn.fit(10, 1e-3)
        return
    learn.fit(8, 1e-3)
    assert cb.updates == 40 and cb.skipped == 40//every
    assert (f'{cb.skipped} of 40 updates were left out' in capsys.readouterr().out) is says
    with learn.no_logging(): learn.fit(8, 1e-3)
    assert 'left out' not in capsys.readouterr().out and cb.skipped == 80//every - 40//every, 'asked to be silent'


@pytest.mark.parametrize('where', ['before_step', 'step', 'zero_grad'])
@pytest.mark.parametrize('error', [KeyboardInterrupt, ValueError])
def test_interrupted_between_scaling_and_update(where, error):
    "The scaler of an interrupted fit refuses to go on; the next fit must not notice."
    learn = learner()
    cb = mixed_precision(learn, torch.float16)
    learn.fit(1, 1e-3)
    scale = cb.scale
    class Fault(Callback):
        order = cb.order + 1
        def before_step(self):
            if where == 'before_step': raise error('x')
    real = getattr(learn.opt, where, None)
    def fault(*args): raise error('x')
    if real: setattr(learn.opt, where, fault)
    with pytest.raises(error): learn.fit(1, 1e-3, cbs=Fault())
    if real: setattr(learn.opt, where, real)
    assert cb.scaler is not None, 'so it was interrupted in the middle'
    weights, left = state(learn)['tensors'], []
    class Left(Callback):
        def before_train(self): left.append(max(p.grad.abs().max() for p in self.model.parameters() if p.grad is not None))
    for _ in range(2):
        learn.fit(1, 1e-3, cbs=Left())
        assert left.pop() == 0, 'gradients of the interrupted fit'
        assert (cb.updates, cb.skipped, cb.scale, cb.scaler) == (5, 0, scale, None)
    assert not same(weights, state(learn)['tensors']) and learn.get_preds()[0].isfinite().all()


def test_a_diverged_fit_does_not_spoil_the_scale_of_the_next():
    learn = learner()
    cb, loss_func = mixed_precision(learn, torch.float16), learn.loss_func
    learn.fit(1, 1e-3)
    scale, learn.loss_func = cb.scale, lambda p, y: p.sum()*math.nan
    learn.fit(4, 1e-3)
    assert cb.skipped == 20 and cb.scale == scale
    learn.loss_func = loss_func
    learn.fit(1, 1e-3)
    assert cb.skipped == 0


def test_the_first_scale_looks_without_touching():
    learn = learner()
    learn.model.conv.weight.grad = torch.ones_like(learn.model.conv.weight)
    x, y = learn.dls.train.one_batch()
    with torch.autocast('cpu', torch.float16): pred = learn.model(x)
    before = state(learn)
    assert precision.first_scale(F.cross_entropy(pred.float(), y), learn.model.parameters()) == 2**16
    assert same(before, state(learn))
    frozen = [torch.ones(2)]
    assert precision.first_scale(torch.ones(()), frozen) == 2**16, 'nothing to look at: as torch does'


def test_a_loss_that_is_never_finite_is_told():
    learn = learner()
    mixed_precision(learn, torch.float16)
    learn.loss_func = lambda p, y: p.sum()*math.nan
    with pytest.raises(FloatingPointError, match='lower rate'): learn.fit(9)


@pytest.mark.parametrize('error', [KeyboardInterrupt(), torch.OutOfMemoryError('x'), ValueError('x')])
def test_exceptions_leave_no_autocast_behind(error):
    learn = learner(Small(most=0, raises=error))
    mixed_precision(learn, torch.bfloat16)
    with pytest.raises(type(error)): learn.fit(1)
    assert not torch.is_autocast_enabled('cpu') and 'forward' not in vars(learn.model)
    learn.model.most = None
    learn.fit(1)


def test_a_forward_of_ones_own_comes_back():
    learn = learner()
    learn.model.forward = own = learn.model.forward
    mixed_precision(learn, torch.bfloat16)
    learn.fit(1)
    assert vars(learn.model)['forward'] is own


def test_find_lr_leaves_no_trace(capsys):
    from ch5clf.lr_finder import find_lr
    weights = {}
    for first in ('nothing', 'find_lr', 'a batch'):
        learn = learner()
        learn.create_opt()
        learn.dls.train.rng = random.Random(5); torch.manual_seed(5); random.seed(5); np.random.seed(5)
        cb = mixed_precision(learn, torch.float16)
        before = state(learn)
        capsys.readouterr()
        if first == 'find_lr':
            formats = set()
            hook = learn.model.conv.register_forward_hook(lambda m, i, out: formats.add(out.dtype))
            find_lr(learn)
            hook.remove()
            assert formats == {torch.float16}
            assert same(before, state(learn)) and cb.scaler is None and cb.scale is None
            assert 'left out' not in capsys.readouterr().out, 'a rate test goes on until updates fail; that is no news'
        if first == 'a batch': learn.dls.train.one_batch()
        learn.fit(2, 1e-3)
        assert cb.updates == 10 and cb.skipped == 0, 'or equal weights would mean nothing'
        assert not same(before['tensors'], state(learn)['tensors'])
        weights[first] = state(learn)['tensors']
    assert same(weights['nothing'], weights['find_lr'])
    assert not same(weights['nothing'], weights['a batch']), 'this test would see a generator that moved by one batch'


@cuda
def test_cuda():
    learn = learner(device='cuda')
    for dtype in (None, torch.float16):
        cb = mixed_precision(learn, dtype)
        learn.model.seen.clear()
        learn.fit(1)
        assert {d for d, *_ in learn.model.seen} == {cb.dtype} and cb.dtype != torch.float32


@mps
def test_mps():
    learn = learner(device='mps')
    cb = mixed_precision(learn)
    learn.fit(1)
    assert {d for d, *_ in learn.model.seen} == {torch.float16} and cb.skipped < 5


# --- memory

@pytest.mark.parametrize('opt_func', [Adam, lambda p, **kw: OptimWrapper(p, torch.optim.AdamW)])
@pytest.mark.parametrize('trained', [False, True])
@pytest.mark.parametrize('most', [3, 8, 39, None])
def test_largest_batch_by_trial_leaves_no_trace(most, trained, opt_func):
    learn = learner(opt_func=opt_func)
    if trained: learn.fit(1); learn.opt.set_hypers(lr=.123)
    learn.model.conv.weight.grad = torch.ones_like(learn.model.conv.weight)
    learn.model.bn.eval(); learn.model.head.bias.requires_grad_(False)
    learn.model.most = most
    before = state(learn)
    found = largest_batch(learn, trial=True)
    assert same(before, state(learn))
    assert found.bs == (most or 40) and found.tried
    assert all(ok == (n <= (most or 40)) for n, ok in found.trials.items())
    assert ('runs out of memory' in found.why) == (most is not None)


def test_nothing_fits():
    found = largest_batch(learner(Small(most=1)), trial=True)
    assert found.bs is None and 'smaller pictures' in found.why and 'no batch size' in repr(found)


@pytest.mark.parametrize('error', [ValueError('a fault of the model'), KeyboardInterrupt()])
def test_other_errors_are_raised_and_leave_no_trace(error):
    learn = learner(Small(most=10, raises=error))
    before = state(learn)
    with pytest.raises(type(error)): largest_batch(learn, trial=True)
    assert same(before, state(learn))


def test_older_words_for_out_of_memory():
    for e in (RuntimeError('MPS backend out of memory'), MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")): assert memory._out_of_memory(e)
    for e in (RuntimeError('shapes do not match'), ValueError('out of memory')): assert not memory._out_of_memory(e)


def test_on_a_cpu_it_estimates_and_says_so(monkeypatch):
    learn = learner()
    before = state(learn)
    found = largest_batch(learn)
    assert same(before, state(learn))
    assert not found.tried and 'not tried' in repr(found) and 'a CPU does not refuse' in found.why
    assert found.bs == 40
    each = (training_memory(learn, 4).activations - training_memory(learn, 2).activations)*1e6/2
    monkeypatch.setattr(memory, '_free_memory', lambda device: (20*each/.8 + 3e3, 'a test'))
    assert 15 <= largest_batch(learn).bs <= 22
    monkeypatch.setattr(memory, '_free_memory', lambda device: (each, 'a test'))
    assert largest_batch(learn).bs is None
    monkeypatch.setattr(memory, '_free_memory', lambda device: (None, 'nobody tells'))
    assert largest_batch(learn).bs is None and 'nobody tells' in largest_batch(learn).why


def test_limits():
    assert largest_batch(learner(), limit=12, trial=True).bs == 12
    with pytest.raises(ValueError, match='at least 2'): largest_batch(learner(), limit=1)


def test_training_memory_adds_up():
    learn = learner(opt_func=Adam)
    before = state(learn)
    m = training_memory(learn)
    assert same(before, state(learn)) and learn.opt is None
    parameters = sum(p.nbytes for p in learn.model.parameters())/1e6
    assert m.gradients == pytest.approx(parameters) and m.optimiser == pytest.approx(2*parameters) and m.weights > parameters
    mixed_precision(learn, torch.bfloat16)
    assert training_memory(learn).activations < .8*m.activations
    mixed_precision(learn, torch.float32)
    learn.create_opt(); learn.freeze()
    for p in (learn.model.conv.weight, learn.model.conv.bias): p.requires_grad_(False)
    assert training_memory(learn).gradients < m.gradients


@cuda
def test_cuda_limit_is_real():
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(.02)
    try:
        learn = learner(nn.Sequential(*[m for _ in range(6) for m in (nn.LazyConv2d(64, 3, padding=1), nn.ReLU())], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(3)), device='cuda')
        learn.model(learn.dls.one_batch()[0])
        before = state(learn)
        found = largest_batch(learn, limit=10**6)
        assert found.tried and found.bs > 8 and same(before, state(learn))
    finally: torch.cuda.set_per_process_memory_fraction(1.)


# --- a budget of time

def test_time_budget():
    now = [0.]
    learn, rates = learner(), []
    step = learn._step
    def slow(): now[0] += 1.; rates.append(learn.opt.hypers[-1]['lr']); step()
    learn._step = slow
    clock = TimeBudget(20, clock=lambda: now[0])
    learn.fit_one_cycle(10**6, 1e-2, cbs=clock)
    assert len(rates) == 20 and clock.pictures == 160 and clock.spent == 20
    assert max(rates) == pytest.approx(1e-2, rel=.05) and 4 < rates.index(max(rates)) < 7 and rates[-1] < 3e-4
    assert all(dtype == torch.float32 and training for dtype, training, _ in learn.model.seen), 'nothing is validated meanwhile'
    with pytest.raises(ValueError, match='above 0'): TimeBudget(0)


def test_sign_test():
    t = lambda s: torch.tensor([c == '1' for c in s])  # noqa: E731
    assert growth.sign_test(t('1100'), t('1100')) == 1
    assert growth.sign_test(t('111111'), t('000000')) == pytest.approx(2/64)
    assert growth.sign_test(t('1110'), t('0001')) == pytest.approx(10/16)


def test_grow_wants_rungs(tmp_path):
    with pytest.raises(ValueError, match='rungs'): grow(tmp_path, [])


@pytest.mark.slow
def test_grow_gives_each_rung_its_time(tmp_path):
    from PIL import Image
    from ch5clf.pretrained import lite0
    rng = np.random.default_rng(0)
    for breed, level in (('Dark', 60), ('light', 190)):
        for i in range(12): Image.fromarray(rng.integers(level - 50, level + 50, (48, 48, 3), dtype=np.uint8)).save(tmp_path/f'{breed}_{i}.jpg')
    table = grow(tmp_path, [(lite0, 32), (lite0, (32, 40))], seconds=1.5, bs=4)
    assert list(table.index) == ['lite0 32 px', 'lite0 32 > 40 px'] and (table.total == 4).all() and (table.pictures > 0).all()
    assert (table.seconds >= 1.5).all() and math.isnan(table.chance.iloc[0]) and 0 < table.chance.iloc[1] <= 1
