"""The promises of ch5clf.lr_finder: curves whose answer is known, and that nothing is left behind, bit for bit."""
import copy, gc, math, os, random, signal, subprocess, sys
from collections import namedtuple
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import fastai.callback.schedule  # adds fit_one_cycle to Learner
from fastai.basics import Adam, Callback, DataLoader, DataLoaders, Learner, OptimWrapper, set_seed
from fastai.callback.fp16 import MixedPrecision  # noqa: F401, adds to_fp16 to Learner
from fastai.callback.mixup import MixUp
from fastai.callback.tracker import SaveModelCallback
from fastai.callback.training import GradientAccumulation
from fastai.losses import CrossEntropyLossFlat
from torch import nn
from torch.nn.utils import prune, weight_norm

from ch5clf.lr_finder import LRFinding, find_lr, frozen_features, last_clear_fall, rate_test, smooth_both_sides, tenth_of_minimum

pytestmark = pytest.mark.usefixtures('ctrl_c')
torch.set_num_threads(1)



# ---- curves whose answer is known -------------------------------------------------------------------------------
def record(f, noise=0., seed=0, start=1e-7, end=10, growth=1.35, level=2.5):
    rng, rates = np.random.default_rng(seed), start*growth**np.arange(math.log(end/start)/math.log(growth))
    return [(math.nan, level + noise*rng.normal(), math.nan)] + [(r, f(r) + noise*rng.normal(), math.nan) for r in rates]


def sigmoid(centre, depth=2., level=2.5, steep=4): return lambda r: level - depth/(1 + (centre/r)**(steep/2.3)) if r < 1 else level*4*r


def test_sigmoid_descent_is_found_and_noise_does_not_move_it():
    found = [LRFinding(record(sigmoid(3e-3), noise, seed), 'diverged') for noise in (0., .1) for seed in range(20)]
    assert all(f.trusted for f in found)
    exact, *noisy = [f.suggest.descent for f in found]
    assert exact == pytest.approx(3e-3, rel=.15)
    assert max(noisy)/min(noisy) < 2
    assert found[0].best == pytest.approx(3*exact)


@pytest.mark.parametrize('noise', [.05, .1, .2, .3])
def test_interval_holds_the_best_rate_and_mostly_the_true_one(noise):
    for centre in (3e-3, .1):
        true = LRFinding(record(sigmoid(centre)), 'diverged').best
        found = [f for seed in range(40) if (f := LRFinding(record(sigmoid(centre), noise, seed), 'diverged')).trusted]
        assert len(found) >= 38 and all(f.interval[0] <= f.best <= f.interval[1] for f in found)
        assert np.mean([f.interval[0] <= true <= f.interval[1] for f in found]) >= .75  # 90 % are meant; of 100 seeds 88 to 100 were measured


def test_what_comes_down_again_after_it_broke_is_not_followed():
    def twice(r): return 2.5 - 1.5/(1 + (1e-3/r)**2) if r < .01 else 3.2 if r < .1 else .8 if r < 1 else 9
    f = LRFinding(record(twice), 'diverged')
    assert f.trusted and f.best < .01 and max(f.suggest) < .02 and f.interval[1] < .02, f


def test_best_stays_where_the_fall_is_not_yet_over():
    def sudden(r): return 2.5 - 1.5*(r > 3e-3) if r < .1 else 9  # half and nine tenths of such a fall lie close together
    f = LRFinding(record(sudden), 'diverged')
    assert f.trusted and f.best < 2*f.suggest.descent, f


def test_every_rule_lies_before_divergence():
    for seed in range(30):
        f = LRFinding(record(sigmoid(3e-3), .3, seed), 'diverged')
        if f.suggest: assert all(r < 1.2 for r in f.suggest), f
        if f.best: assert f.best <= f.lrs[f.smooth.argmin()]*1.001 and f.interval[1] < 1.2


def test_smoothing_is_symmetric_and_adjustable_on_the_record():
    f = LRFinding(record(sigmoid(3e-3), .1), 'diverged')
    wide = f.smoothed(.4)
    assert np.array_equal(wide.losses, f.losses) and wide.width == .4 and not np.allclose(wide.smooth, f.smooth)
    narrow = LRFinding(record(sigmoid(3e-3)), 'diverged', width=.05)
    assert abs(math.log10(narrow.suggest.steep/3e-3)) < .15  # no lag


@pytest.mark.parametrize('rows, stopped, says', [
    (record(lambda r: 2.5), 'finished', 'hardly moves'),
    (record(lambda r: 2.5 + 30*max(0, r - .01)), 'diverged', 'hardly falls before it rises'),
    (record(lambda r: 2.5 - .25*(7 + math.log10(r))), 'finished', 'still falling'),
    (record(sigmoid(3e-3))[:5], 'finished', 'too short'),
    ([(math.nan, math.nan, math.nan)], 'non-finite', 'not finite'),
    ([], 'finished', 'too short'),
    (record(sigmoid(3e-3)), 'interrupted', 'interrupted')])
def test_refusals(rows, stopped, says):
    f = LRFinding(rows, stopped)
    assert not f.trusted and f.best is None and f.rates is None and f.interval is None and says in f.why
    assert says in repr(f) and says in f._repr_html_()
    with pytest.raises(ValueError, match='no rate to compare around'): f.verify()


class Quadratic(nn.Module):
    "Loss 1/2 sum(lambda_i w_i^2): gradient descent is stable below 2/lambda_max."
    def __init__(self, curvature):
        super().__init__()
        self.register_buffer('curvature', torch.tensor(curvature))
        self.w = nn.Parameter(torch.ones(len(curvature)))
    def forward(self, x): return .5*(self.curvature*self.w**2).sum()[None]


@pytest.mark.parametrize('curvature', [[1., 3., 10.], [.1, .3, .1], [100., 400., 300.]])
def test_quadratic_stays_below_its_limit(curvature):
    model = Quadratic(curvature)
    f = find_lr(model, torch.optim.SGD(model.parameters(), lr=1.), lambda out, target: out.mean(), [(torch.zeros(1), torch.zeros(1))], end=1e4, progress=False)
    limit = 2/max(curvature)
    assert f.trusted and f.stopped == 'diverged', f
    assert limit/30 < f.best < limit and all(r < limit for r in f.suggest), (f, limit)


# ---- small learners ---------------------------------------------------------------------------------------------
class Rows:
    def __init__(self, n=96, seed=0):
        g = torch.Generator().manual_seed(seed)
        self.y = torch.randint(0, 3, (n,), generator=g)
        self.x = torch.randn(n, 6, generator=g) + 2*torch.eye(6)[self.y]
    def __len__(self): return len(self.x)
    def __getitem__(self, i): return self.x[i] + .1*torch.rand(6) + .1*random.random() + .1*np.random.rand(), self.y[i]  # an augmentation that draws from every generator


def net(): return nn.Sequential(nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU()), nn.Sequential(nn.Flatten(), nn.Dropout(.2), nn.Linear(16, 3)))
def groups(model): return [list(model[0].parameters()), list(model[1].parameters())]


def make(seed=1, n=96, bs=16, opt_func=Adam, cbs=None, loss_func=None, **kwargs):
    set_seed(seed)
    dls = DataLoaders(DataLoader(Rows(n), bs=bs, shuffle=True, drop_last=n > bs), DataLoader(Rows(48, 1), bs=48), device='cpu')
    return Learner(dls, net(), loss_func=loss_func or nn.CrossEntropyLoss(), opt_func=opt_func, splitter=groups, cbs=cbs, **kwargs)


def quietly(learn, f):
    with learn.no_logging(): return f(learn)


def look(o, seen=None):
    "Everything below an object, as plain values that can be compared."
    seen = {} if seen is None else seen
    if id(o) in seen: return 'seen'
    if isinstance(o, torch.Tensor): return (o.dtype, o.requires_grad, o.detach().cpu().double().numpy().tobytes(), None if not o.is_leaf or o.grad is None else o.grad.cpu().double().numpy().tobytes())
    if isinstance(o, np.ndarray): return o.tobytes()
    if isinstance(o, random.Random): return o.getstate()
    if isinstance(o, torch.Generator): return o.get_state().numpy().tobytes()
    if isinstance(o, (bool, int, float, str, type(None), bytes)): return repr(o)
    seen[id(o)] = o
    if isinstance(o, dict): return [(repr(k) if not isinstance(k, torch.Tensor) else id(k), look(v, seen)) for k, v in o.items()]
    if isinstance(o, (list, tuple)): return [look(v, seen) for v in o]
    if isinstance(o, nn.Module): return [(n, m.training) for n, m in o.named_modules()], [(n, id(t), look(t)) for n, t in [*o.named_parameters(), *o.named_buffers()]]
    if hasattr(o, '__dict__') and type(o).__module__.startswith(('fastai', 'fastcore', 'torch.optim', 'torch.utils.data', __name__)) and not isinstance(o, type): return look(vars(o), seen)
    return id(o)


def state(*things): return [look(t) for t in things], random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()
def weights(model): return {k: v.clone() for k, v in model.state_dict().items()}
def same(a, b): return all(torch.equal(a[k], b[k]) for k in a)


class Counter(Callback):
    def __init__(self): self.calls, self.seen = 0, []
    def before_batch(self): self.calls += 1; self.seen.append(self.calls)


LEARNERS = {
    'fresh': lambda: make(),
    'frozen': lambda: _frozen(make()),
    'trained': lambda: _trained(make()),
    'torch AdamW': lambda: _trained(make(opt_func=partial(OptimWrapper, opt=torch.optim.AdamW))),
    'built optimiser': lambda: _built(),
    'mixup': lambda: make(cbs=MixUp(), loss_func=CrossEntropyLossFlat()),
    'accumulation': lambda: make(cbs=GradientAccumulation(32)),
    'to_fp16': lambda: _trained(make().to_fp16()),
    'counting callback': lambda: _trained(make(cbs=Counter())),
    'one short batch': lambda: make(n=12)}


def _frozen(learn): learn.freeze(); return learn
def _trained(learn): quietly(learn, lambda o: o.fit_one_cycle(2, 1e-2)); return learn
def _built():
    learn = make()
    learn.opt_func = OptimWrapper(opt=torch.optim.SGD([dict(params=g) for g in groups(learn.model)], lr=.1, momentum=.9))
    return learn


@pytest.mark.parametrize('name', LEARNERS)
@pytest.mark.parametrize('features', [False, True])
def test_learner_find_then_fit_equals_fit(name, features):
    if features and name in ('mixup', 'accumulation', 'built optimiser'): pytest.skip('said for exact mode')
    plain = LEARNERS[name]()
    quietly(plain, lambda o: o.fit_one_cycle(2, 1e-2))
    after = (weights(plain.model), list(plain.recorder.losses), [v[:2] for v in plain.recorder.values])
    learn = LEARNERS[name]()
    before, opt = state(learn, learn.dls.train, learn.cbs), learn.opt
    f = find_lr(learn, features=features, progress=False)
    assert len(f.lrs) > 5 and learn.opt is opt
    assert state(learn, learn.dls.train, learn.cbs) == before
    quietly(learn, lambda o: o.fit_one_cycle(2, 1e-2))
    assert same(weights(learn.model), after[0]) and all(float(a) == float(b) for a, b in zip(learn.recorder.losses, after[1])) and [v[:2] for v in learn.recorder.values] == after[2]
    assert f.approximate is features and ('approximate' in repr(f)) is features and ('approximate' in f.why) is features


class Breaks(nn.Module):
    "Passes on what it gets, until its call number `at`."
    def __init__(self, at, how): super().__init__(); self.at, self.how, self.count = at, how, SimpleNamespace(calls=0)  # a count that nobody puts back
    def forward(self, x):
        self.count.calls += 1
        if self.count.calls < self.at: return x
        if isinstance(self.how, float): return x*self.how
        raise self.how


@pytest.mark.parametrize('how', [KeyboardInterrupt(), RuntimeError('no memory'), math.nan, math.inf])
@pytest.mark.parametrize('at', [1, 2, 31])
def test_learner_after_interrupt_exception_and_nan(how, at):
    learn = _trained(make())
    breaks = Breaks(at, how)
    learn.model[1].add_module('breaks', breaks)
    learn.model.eval()
    before = state(learn, learn.dls.train, learn.cbs)
    if isinstance(how, RuntimeError):
        with pytest.raises(RuntimeError, match='no memory'): find_lr(learn, progress=False)
    else:
        f = find_lr(learn, progress=False)
        assert f.stopped == ('interrupted' if isinstance(how, KeyboardInterrupt) else 'non-finite')
        assert len(f.lrs) < 31 and (f.stopped == 'non-finite' or not f.trusted)
        assert not any(r > f.lrs[-1] for r in f.suggest or ())
    assert state(learn, learn.dls.train, learn.cbs) == before


def test_nan_at_a_step_stops_there():
    class Bad(nn.Module):
        def __init__(self): super().__init__(); self.fc, self.count = nn.Linear(6, 3), SimpleNamespace(calls=0)
        def forward(self, x):
            self.count.calls += 1
            return self.fc(x)*(math.nan if self.count.calls > 40 else 1)
    m, rows = Bad(), Rows()
    f = find_lr(m, torch.optim.SGD(m.parameters(), 1.), nn.CrossEntropyLoss(), [(rows.x, rows.y)], progress=False)
    assert f.stopped == 'non-finite' and 41 <= m.count.calls <= 42 and not math.isfinite(f.losses[-1])


def test_learner_writes_nothing_and_runs_no_watchers(tmp_path):
    learn = make(cbs=SaveModelCallback(monitor='valid_loss'), path=tmp_path)
    find_lr(learn, progress=False)
    assert not list(tmp_path.rglob('*')) and not hasattr(learn.recorder, 'losses') and learn.opt is None


QUIET = """
import sys, os
from test_lr_finder import *

touched, on = [], [False]
def watch(event, args):
    if not on[0]: return
    if event == 'open' and isinstance(args[0], (str, bytes)) and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC) and args[0] != os.devnull: touched.append(args)
    if event in ('os.mkdir', 'os.remove', 'os.rename', 'os.rmdir', 'os.truncate', 'os.link', 'os.symlink', 'tempfile.mkstemp', 'tempfile.mkdtemp'): touched.append((event, *args))
sys.addaudithook(watch)

set_seed(1)
model, rows, learn = net(), Rows(), make()
opt = torch.optim.SGD(model.parameters(), .1)
find_lr(make(), progress=False), find_lr(make(), features=True, progress=False)  # what is compiled on first use
on[0] = True
found = [find_lr(learn, progress=False), find_lr(learn, features=True, progress=False), find_lr(model, opt, nn.CrossEntropyLoss(), [(rows.x, rows.y)], progress=False)]
found[0].verify(length=1, around=.1)
assert not touched, touched
open(f'seen-{os.getpid()}', 'w').close()
assert touched  # the watch does see a file that is written
on[0] = False
print([(f.best, f.losses.tolist()) for f in found])
"""


def test_no_file_is_written_and_two_processes_do_not_meet(tmp_path):
    two = [subprocess.Popen([sys.executable, '-c', QUIET], cwd=tmp_path, env=os.environ | dict(PYTHONPATH=os.pathsep.join([str(Path(__file__).parent), *sys.path]), PYTHONDONTWRITEBYTECODE='1'),
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [p.communicate(timeout=300) for p in two]
    assert all(p.returncode == 0 for p in two), said
    assert said[0][0] and said[0][0] == said[1][0]


@pytest.mark.parametrize('opt', [partial(torch.optim.SGD, momentum=.9), torch.optim.AdamW, partial(torch.optim.Adam, amsgrad=True)])
@pytest.mark.parametrize('how', ['plain', 'trained', 'stop', 'interrupt'])
def test_loop_find_then_train_equals_train(opt, how):
    def setting():
        set_seed(3)
        model = net()
        g = torch.Generator().manual_seed(5)
        loader = torch.utils.data.DataLoader(Rows(), batch_size=16, generator=g, sampler=torch.utils.data.RandomSampler(Rows(), generator=torch.Generator().manual_seed(6)))
        optimizer = opt([dict(params=model[0].parameters(), lr=1e-3), dict(params=model[1].parameters(), lr=1e-2)])
        if how == 'trained': train(model, optimizer, loader)
        return model, optimizer, loader

    def train(model, optimizer, loader):
        for x, y in loader: nn.functional.cross_entropy(model(x), y).backward(); optimizer.step(); optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()  # a gradient is left waiting

    plain = setting()
    train(*plain)
    model, optimizer, loader = setting()
    before = state(model, optimizer, loader.generator, loader.sampler.generator)
    loss, calls = nn.CrossEntropyLoss(), [0]
    def breaking(*args):
        calls[0] += 1
        if calls[0] == 20 and how in ('stop', 'interrupt'): raise {'stop': ValueError('stop'), 'interrupt': KeyboardInterrupt()}[how]
        return loss(*args)
    if how == 'stop':
        with pytest.raises(ValueError, match='stop'): find_lr(model, optimizer, breaking, loader, progress=False)
    else: assert (find_lr(model, optimizer, breaking, loader, progress=False).stopped == 'interrupted') is (how == 'interrupt')
    assert state(model, optimizer, loader.generator, loader.sampler.generator) == before
    train(model, optimizer, loader)
    assert same(weights(model), weights(plain[0]))


# ---- groups, updates, batches -----------------------------------------------------------------------------------
def test_groups_move_by_one_multiplier_and_frozen_ones_stay():
    seen = []
    class Spy(torch.optim.SGD):
        def step(self, closure=None): seen.append([g['lr'] for g in self.param_groups]); return super().step(closure)
    model, rows = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)), Rows()
    for p in model[0].parameters(): p.requires_grad_(False)
    opt = Spy([dict(params=model[0].parameters(), lr=.7), dict(params=model[2].parameters(), lr=1e-3), dict(params=model[4].parameters(), lr=1e-2)])
    start = copy.deepcopy(model[0].state_dict())
    f = find_lr(model, opt, nn.CrossEntropyLoss(), [(rows.x, rows.y)], end=1e3, progress=False)
    assert {a for a, _, _ in seen} == {.7} and all(b == pytest.approx(c/10) for _, b, c in seen) and same(start, model[0].state_dict())
    assert f.trusted and f.rates.groups == pytest.approx((.7, f.best/10, f.best)) and f.lrs.max() == pytest.approx(max(c for *_, c in seen))
    assert [g['lr'] for g in opt.param_groups] == [.7, 1e-3, 1e-2]


def test_learner_rates_can_be_passed_on():
    learn = make()
    f = find_lr(learn, lr=slice(1e-4, 1e-2), repeats=3, progress=False)
    assert f.trusted and f.rates.groups == pytest.approx((f.best/100, f.best)) and f.rates.slice.start == pytest.approx(f.best/100)
    learn.create_opt(); learn.opt.set_hyper('lr', f.rates.slice)
    assert [h['lr'] for h in learn.opt.hypers] == pytest.approx(f.rates.groups)
    f = find_lr(make(), repeats=3, progress=False)
    assert f.rates.groups == pytest.approx((f.best, f.best))


@pytest.mark.parametrize('form', ['learner', 'loop'])
def test_only_updates_count_under_accumulation(form):
    steps, batches = [], []
    if form == 'learner':
        learn = make(cbs=GradientAccumulation(48))
        class Spy(Callback):
            def before_batch(self): batches.append(1)
            def after_step(self): steps.append(1)
        learn.add_cb(Spy())
        f = find_lr(learn, progress=False)
    else:
        model, rows = net(), Rows()
        class Counting(torch.optim.SGD):
            def step(self, closure=None): steps.append(1); return super().step(closure)
        f = find_lr(model, Counting(model.parameters(), .1), lambda o, t: (batches.append(1), nn.functional.cross_entropy(o, t))[1], [(rows.x[:16], rows.y[:16])]*3, accumulate=3, progress=False)
    assert len(f.lrs) in (len(steps), len(steps) - 1) and len(batches) >= 3*len(steps)
    assert np.all(np.diff(f.lrs) > 0)


def test_skipped_steps_of_a_scaler_do_not_count():
    class Scaler:  # skips every third step, as after an overflow
        def __init__(self): self.factor, self.calls, self.skip = 1024., 0, False
        made = 0
        def scale(self, loss): return loss*self.factor
        def get_scale(self): return self.factor
        def step(self, opt):
            self.calls += 1; Scaler.made += 1
            self.skip = self.calls % 3 == 0
            if self.skip: return
            for g in opt.param_groups:
                for p in g['params']: p.grad /= self.factor
            opt.step()
        def update(self): self.factor *= .5 if self.skip else 1
    model, rows, scaler, steps = net(), Rows(), Scaler(), []
    class Counting(torch.optim.SGD):
        def step(self, closure=None): steps.append(self.param_groups[0]['lr']); return super().step(closure)
    f = find_lr(model, Counting(model.parameters(), .1), nn.CrossEntropyLoss(), [(rows.x, rows.y)], scaler=scaler, progress=False)
    assert sorted(set(f.lrs)) == pytest.approx(sorted(steps)) and Scaler.made > len(steps) and vars(scaler) == dict(factor=1024., calls=0, skip=False)


def test_bfloat16():
    model, rows = net(), Rows()
    f = find_lr(model, torch.optim.SGD(model.parameters(), .1), nn.CrossEntropyLoss(), [(rows.x, rows.y)], context=lambda: torch.autocast('cpu', torch.bfloat16), progress=False)
    assert f.trusted and f.lrs[-1] > .05
    model = net().to(torch.bfloat16)
    before = state(model)
    f = find_lr(model, torch.optim.SGD(model.parameters(), .1), nn.CrossEntropyLoss(), [(rows.x.bfloat16(), rows.y)], progress=False)
    assert f.trusted and state(model) == before


def test_one_batch_and_no_batch_and_one_shot():
    model, rows = net(), Rows()
    opt, loss = torch.optim.SGD(model.parameters(), .1), nn.CrossEntropyLoss()
    assert find_lr(model, opt, loss, [(rows.x, rows.y)], progress=False).trusted
    with pytest.raises(ValueError, match='no batches'): find_lr(model, opt, loss, [], progress=False)
    with pytest.raises(ValueError, match='one-shot iterator'): find_lr(model, opt, loss, iter([(rows.x, rows.y)]), progress=False)
    with pytest.raises(ValueError, match='one-shot iterator'): find_lr(model, opt, loss, ((rows.x, rows.y) for _ in range(99)), progress=False)
    with pytest.raises(ValueError, match='no batches'): find_lr(make(n=12, bs=16).__class__(DataLoaders(DataLoader(Rows(12), bs=16, drop_last=True), DataLoader(Rows(12), bs=12), device='cpu'), net(), loss_func=loss), progress=False)
    with pytest.raises(ValueError, match='optimizer, loss'): find_lr(model, batches=[(rows.x, rows.y)])
    with pytest.raises(ValueError, match='brings its own'): find_lr(make(), opt)
    with pytest.raises(ValueError, match='needs a fastai Learner'): find_lr(model, opt, loss, [(rows.x, rows.y)], features=True)
    with pytest.raises(TypeError, match='expected a fastai Learner'): find_lr('resnet34')
    for p in model.parameters(): p.requires_grad_(False)
    with pytest.raises(ValueError, match='no parameter needs a gradient'): find_lr(model, opt, loss, [(rows.x, rows.y)], progress=False)


def test_after_training_to_the_end_it_refuses():
    learn = make()
    quietly(learn, lambda o: o.fit_one_cycle(12, 1e-2))
    f = find_lr(learn, progress=False)
    assert not f.trusted and f.best is None and f.rates is None and len(f.why) > 20, f


def test_same_call_same_answer_and_verify_leaves_no_trace():
    learn = make()
    a, b = find_lr(learn, repeats=3, progress=False), find_lr(learn, repeats=3, progress=False)
    assert np.array_equal(a.losses, b.losses) and a.best == b.best
    before = state(learn, learn.dls.train, learn.cbs)
    table = a.verify(length=2)
    assert table.factor.tolist() == [1/3, 1, 3] and np.isfinite(table.loss).all() and table.loss.iloc[1] < a.level
    assert state(learn, learn.dls.train, learn.cbs) == before
    model, rows = net(), Rows()
    opt = torch.optim.SGD(model.parameters(), .1)
    f, before = find_lr(model, opt, nn.CrossEntropyLoss(), [(rows.x, rows.y)], progress=False), state(model, opt)
    assert len(f.verify()) == 3 and state(model, opt) == before


def test_frozen_features_give_what_the_model_gives():
    learn = make()
    learn.model.train()
    fixed = [(Rows().x, Rows().y)]
    features, targets, rest = frozen_features(learn, fixed)
    assert learn.model.training and features.shape == (96, 16) and torch.equal(targets, fixed[0][1])
    learn.model.eval()
    assert torch.allclose(rest(features), learn.model(fixed[0][0])) and next(rest.parameters()) is next(learn.model[1].parameters())
    with pytest.raises(ValueError, match='expected nn.Sequential'): frozen_features(Learner(learn.dls, nn.Linear(6, 3), loss_func=nn.CrossEntropyLoss()), fixed)


def test_figure_and_words():
    f = find_lr(make(), progress=False)
    ax = f.plot()
    assert ax.get_xscale() == 'log' and len(ax.lines) >= 7
    html = f._repr_html_()
    assert html.startswith('<table>') and 'alt=' in html and 'best rate' in repr(f)
    assert set(f.suggest._fields) == {'descent', 'last_fall', 'steep', 'minimum', 'valley'}


# ---- what cannot mean anything is said so ------------------------------------------------------------------------
def loop(model=None, rows=None):
    model, rows = model or net(), rows or Rows()
    return model, torch.optim.SGD(model.parameters(), .1), nn.CrossEntropyLoss(), list(zip(rows.x.split(16), rows.y.split(16)))


@pytest.mark.parametrize('name, value', [('width', 0), ('width', -1.), ('width', math.nan), ('width', 'wide'), ('peak', 0), ('repeats', -1), ('repeats', 0), ('repeats', 1.5), ('accumulate', 0), ('steps', 0),
                                         ('start', 0), ('start', '1e-7'), ('warmup', -1), ('end', 1e-9)])
def test_options_without_meaning_are_named(name, value):
    for args in (loop(), (make(),)):
        with pytest.raises(ValueError, match=f'{name}=.*expected'): find_lr(*args, progress=False, **{name: value})
    if name in ('width', 'peak'):
        with pytest.raises(ValueError, match=f'{name}='): LRFinding(record(sigmoid(3e-3)), 'diverged', **{name: value})


@pytest.mark.parametrize('lr', [slice(1e-4, 1e-2), slice(1e-3), [1e-3, 1e-3], -1., 0., math.nan, [[1e-3]]])
def test_rates_of_a_torch_optimizer(lr):
    with pytest.raises(ValueError, match='lr=.*(a slice is fastai|expected a positive rate for each of the 1)'): find_lr(*loop(), lr=lr, progress=False)


@pytest.mark.parametrize('lr', [slice(None), slice(1e-4, None), slice(0, 1e-3), -1., [1e-3, 0.], [1e-4, 1e-3, 1e-2], []])
def test_rates_of_a_learner(lr):
    learn = make()
    before = state(learn, learn.dls.train, learn.cbs)
    with pytest.raises(ValueError, match='lr='): find_lr(learn, lr=lr, progress=False)
    assert state(learn, learn.dls.train, learn.cbs) == before and learn.opt is None


def test_nothing_to_train():
    frozen = make()
    for p in frozen.model.parameters(): p.requires_grad_(False)
    with pytest.raises(ValueError, match='no parameter needs a gradient.*unfreeze'): find_lr(frozen, progress=False)
    bare = nn.Sequential(nn.Flatten(), nn.ReLU())
    with pytest.raises(ValueError, match='has no parameters'): find_lr(bare, torch.optim.SGD(net().parameters(), .1), nn.CrossEntropyLoss(), [(torch.ones(2, 3), torch.zeros(2))], progress=False)
    with pytest.raises(ValueError, match='has no parameters'): find_lr(Learner(make().dls, bare, loss_func=nn.CrossEntropyLoss()), progress=False)


def test_named_tuples_are_batches():
    Batch = namedtuple('Batch', 'features label')
    set_seed(1)
    model, opt, loss, batches = loop()
    plain = find_lr(model, opt, loss, batches, progress=False)
    named = find_lr(model, opt, loss, [Batch(*b) for b in batches], progress=False)
    assert len(plain.losses) > 20 and np.array_equal(plain.losses, named.losses) and plain.best == named.best
    with pytest.raises(ValueError, match='a batch of type dict: expected'): find_lr(model, opt, loss, [dict(zip('xy', b)) for b in batches], progress=False)


class Mute(Exception): "An error without arguments."


@pytest.mark.parametrize('error', [Mute(), AssertionError(), ValueError('with words'), StopIteration()])
@pytest.mark.parametrize('at', [1, 2, 8])
def test_an_error_of_the_model_surfaces_as_itself(error, at):
    for form in ('learner', 'loop'):
        model = nn.Sequential(net(), Breaks(at, error))
        args = loop(model) if form == 'loop' else (Learner(make().dls, model, loss_func=nn.CrossEntropyLoss()),)
        with pytest.raises(Exception) as caught: find_lr(*args, progress=False)
        assert caught.value is error and error.args == (('with words',) if isinstance(error, ValueError) else ()), form


@pytest.mark.parametrize('form', ['learner', 'loop'])
def test_a_second_ctrl_c_does_not_stop_the_restoring(form, monkeypatch):
    from ch5clf import restore
    learn = make()
    model, opt, loss, batches = loop()
    things = (learn.model, learn.dls.train, learn.cbs) if form == 'learner' else (model, opt)
    def interrupted(o, t): signal.raise_signal(signal.SIGINT)
    learn.loss_func = interrupted
    before, back, pressed = state(*things), restore._Tensor.back, []
    def pressing(self):
        if len(pressed) < 3 and isinstance(self.t, nn.Parameter): pressed.append(1); signal.raise_signal(signal.SIGINT)
        back(self)
    monkeypatch.setattr(restore._Tensor, 'back', pressing)
    with pytest.raises(KeyboardInterrupt): find_lr(*((learn,) if form == 'learner' else (model, opt, interrupted, batches)), progress=False)
    assert len(pressed) == 3 and state(*things) == before and learn.opt is None


@pytest.mark.parametrize('kind', ['pruned', 'weight norm'])
def test_pruned_and_normed_layers_are_put_back(kind):
    model = net()
    layer = model[1][2]
    if kind == 'pruned': prune.l1_unstructured(layer, 'weight', .5)
    else: weight_norm(layer)
    model(Rows().x)
    held, value, names = layer.weight, layer.weight.detach().clone(), sorted(vars(layer))
    f = find_lr(*loop(model), progress=False)
    assert len(f.lrs) > 10 and layer.weight is held and torch.equal(held, value) and sorted(vars(layer)) == names


@pytest.mark.slow
def test_memory_at_most_one_copy():
    "The one that is kept. (Gradients, which every training has, are not Python's objects and are not counted.)"
    class Counting(nn.Module):
        def __init__(self): super().__init__(); self.body, self.most = nn.Sequential(nn.Linear(6, 500), nn.Linear(500, 500), nn.Linear(500, 3)), SimpleNamespace(bytes=0)
        def forward(self, x):
            held = {o.untyped_storage().data_ptr(): o.untyped_storage().nbytes() for o in gc.get_objects() if type(o) in (torch.Tensor, nn.Parameter)}
            self.most.bytes = max(self.most.bytes, sum(held.values()))
            return self.body(x)
    gc.collect()
    model = Counting()
    args = loop(model)
    weights = sum(p.nbytes for p in model.parameters())
    model(args[3][0][0])
    before, model.most.bytes = model.most.bytes, 0
    find_lr(*args, repeats=2, progress=False)
    assert .9*weights < model.most.bytes - before < 1.1*weights, (model.most.bytes - before)/weights


def test_the_example_of_the_docstring_runs():
    lines = [l[8:] for l in find_lr.__doc__.splitlines() if l.startswith(' '*8)]
    names = dict(nn=nn, torch=torch, find_lr=find_lr)
    torch.manual_seed(0)
    exec('\n'.join(lines), names)
    assert names['found'].trusted and names['found'].stopped == 'diverged'


# ---- the short versions that the chapter derives -------------------------------------------------------------------
def test_the_test_by_hand():
    set_seed(1)
    model, opt, loss, batches = loop()
    rates, losses = rate_test(model, loss, batches*20, torch.optim.SGD, start=1e-4, factor=1.5)
    assert np.allclose(rates[1:]/rates[:-1], 1.5) and rates[0] == 1e-4 and losses[-1] > 3*losses[0] and (losses[:-1] <= 3*losses[0]).all()
    assert len(rate_test(model, loss, batches[:3])[0]) == 3


def test_two_rules_by_hand():
    rates = 1e-6*2.**np.arange(20)
    losses = np.array([2.5, 2.6, 2.4, 2.5, 2.6, 2.4, 2.5, 2.5, 2.2, 1.8, 1.4, 1., .9, .88, .86, 1.2, 3, 9, 20, 50])
    assert tenth_of_minimum(rates, losses) == rates[14]/10
    assert last_clear_fall(rates, losses) == rates[10]  # whose step took the loss from 1.4 to 1; the later falls are as small as the noise
    assert last_clear_fall(rates, np.arange(20.)) == rates[0]
    smooth = smooth_both_sides(rates, losses)
    assert smooth.shape == losses.shape and np.std(smooth[:6]) < np.std(losses[:6])/2
    assert np.allclose(smooth_both_sides(rates, np.ones(20)), 1)
