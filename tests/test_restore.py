"""What `untouched` promises: models of many kinds, trained, spoiled and interrupted within the block, are the same objects with the same bits after it."""
import copy, gc, random, signal, threading, weakref
from collections import deque
from functools import partial

import numpy as np
import pytest
import torch
import fastai.callback.schedule  # noqa: F401, adds fit_one_cycle to Learner
from fastai.basics import Adam, Callback, DataLoader, DataLoaders, Learner, OptimWrapper, set_seed
from fastai.callback.fp16 import MixedPrecision  # noqa: F401, adds to_fp16 to Learner
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from ch5clf.restore import Memory, untouched

pytestmark = [pytest.mark.filterwarnings('ignore'), pytest.mark.usefixtures('ctrl_c')]
torch.set_num_threads(1)



# ---- a look at everything, written without the code that is tested -----------------------------------------------
def look(o, seen=None):
    "Identity and contents of everything below an object, as plain values that can be compared."
    seen = {} if seen is None else seen
    if isinstance(o, (bool, int, float, str, bytes, type(None))): return repr(o)
    if id(o) in seen: return id(o)
    seen[id(o)] = o
    if isinstance(o, torch.Tensor):
        dense = o.detach().to_dense() if o.is_sparse else o.detach()
        grad = o.grad if o.is_leaf else None
        return id(o), o.dtype, o.requires_grad, o.shape, dense.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if o.numel() else b'', look(grad, seen)
    if isinstance(o, np.ndarray): return id(o), o.tobytes()
    if isinstance(o, (random.Random, np.random.RandomState)): return id(o), repr(o.getstate() if isinstance(o, random.Random) else o.get_state())
    if isinstance(o, np.random.Generator): return id(o), repr(o.bit_generator.state)
    if isinstance(o, torch.Generator): return id(o), o.get_state().numpy().tobytes()
    if isinstance(o, dict): return id(o), [(id(k) if isinstance(k, torch.Tensor) else repr(k), look(v, seen)) for k, v in o.items()]
    if isinstance(o, (list, tuple, deque, set)): return id(o), [look(v, seen) for v in o]
    walk = isinstance(o, nn.Module) or type(o).__module__.startswith(('fastai', 'fastcore', 'torch.optim', __name__))
    if walk and hasattr(o, '__dict__') and not isinstance(o, type): return id(o), look(vars(o), seen), getattr(o, 'training', None)
    return id(o)


def bits(*things):
    seen = {}
    return [look(o, seen) for o in things]


def globally(): return random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes(), torch.is_autocast_enabled('cpu')


# ---- models -------------------------------------------------------------------------------------------------------
class Odd(nn.Module):
    "Everything that a layer may keep beside its parameters."
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 3)
        self.register_buffer('wide', torch.zeros(1).expand(4))
        self.register_buffer('calls', torch.zeros((), dtype=torch.int64), persistent=False)
        self.register_buffer('phase', torch.ones(2, dtype=torch.complex64))
        self.plain, self.nan, self.steps, self.queue = torch.zeros(6), torch.tensor([float('nan'), -0.]), 0, deque([torch.zeros(2)])
        self.history, self.table, self.names = [], {'a': torch.zeros(2), 'b': [1]}, {'x'}
        self.array, self.generators = np.zeros(3), [torch.Generator(), random.Random(1), np.random.default_rng(1), np.random.RandomState(1)]
        with torch.inference_mode(): self.cached = torch.ones(2)
        self.product = self.fc.weight*2  # not a leaf
    def forward(self, x):
        self.calls += 1; self.plain += x.sum(0).detach(); self.steps += 1; self.history.append(x); self.queue.append(x)
        self.table['a'] += 1; self.table['b'].append(2); self.table['new'] = x; self.names.add('y')
        self.phase *= 1j; self.array += 1; self.added = x; self.nan[1] = 0.
        torch.rand(1, generator=self.generators[0]); self.generators[1].random(); self.generators[2].random(); self.generators[3].rand()
        with torch.inference_mode(): self.cached += 1
        return self.fc(x)


def plain(): return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(.2), nn.Linear(8, 3))
def tied():
    m = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 3))
    m[2].weight = m[0].weight
    return m
def pruned():
    m = plain()
    prune.random_unstructured(m[0], 'weight', .5); prune.ln_structured(m[4], 'weight', .3, n=2, dim=0)
    return m
def normed(): return nn.Sequential(weight_norm(nn.Linear(6, 8)), parametrizations.weight_norm(nn.Linear(8, 8)), spectral_norm(nn.Linear(8, 3)))
def scripted(): return torch.jit.script(plain())
class Words(nn.Module):
    def __init__(self, **kwargs): super().__init__(); self.emb, self.rnn, self.out = nn.Embedding(5, 6, **kwargs), nn.LSTM(6, 4, batch_first=True), nn.Linear(4, 3)
    def forward(self, x): return self.out(self.rnn(self.emb((x.abs()*2).long().clamp(0, 4)))[0][:, -1])
def hooked():
    m = plain()
    m[0].register_forward_hook(lambda m, i, o: o*1.5); m[4].weight.register_hook(lambda g: g*.5)
    return m
def partly():
    m = plain()
    for p in m[0].parameters(): p.requires_grad_(False)
    m[1].eval()
    return m


MODELS = dict(plain=plain, tied=tied, pruned=pruned, normed=normed, scripted=scripted, words=Words, max_norm=partial(Words, max_norm=1.), sparse=partial(Words, sparse=True),
              hooked=hooked, partly=partly, odd=Odd, bfloat16=lambda: plain().to(torch.bfloat16), float64=lambda: plain().double())
OPTIMISERS = dict(sgd=partial(torch.optim.SGD, lr=.1), momentum=partial(torch.optim.SGD, lr=.1, momentum=.9), adam=partial(torch.optim.Adam, amsgrad=True), adamw=partial(torch.optim.AdamW, foreach=True),
                  rmsprop=torch.optim.RMSprop, none=None)
ROWS = [(torch.randn(6, generator=torch.Generator().manual_seed(i)), torch.tensor(i % 3)) for i in range(24)]


def step(model, opt, x, y):
    model(x).float().pow(2).mean().add(nn.functional.cross_entropy(model(x).float(), y)).backward()
    if opt: opt.step(); opt.zero_grad()


def train(model, opt, loader, dtype):
    for x, y in loader: step(model, opt, x.to(dtype) + torch.rand(6).to(dtype)*random.random()*np.random.rand(), y)


def spoil(model, opt, how):
    "What a block may do besides training."
    rng = random.Random(how)
    for _ in range(4):
        act = rng.randrange(8)
        params = [p for p in model.parameters() if p.is_leaf]
        p = rng.choice(params)
        if act == 0: model.eval()
        elif act == 1: p.requires_grad_(not p.requires_grad)
        elif act == 2: p.data = torch.zeros(2)
        elif act == 3: p.grad = None
        elif act == 4: p.data.mul_(float('nan'))
        elif act == 5 and not isinstance(model, torch.jit.ScriptModule): next(model.children()).register_buffer('left_behind', torch.zeros(2)); model.note = 'left behind'
        elif act == 6 and opt: opt.param_groups[0].update(lr=9., left='behind'); opt.state.clear()
        elif act == 7: random.seed(0); np.random.seed(0); torch.manual_seed(0); torch.set_autocast_enabled('cpu', True)


def setting(model, opt, warm):
    torch.manual_seed(3); random.seed(3); np.random.seed(3)
    model = MODELS[model]()
    dtype = next(p for p in model.parameters()).dtype
    optimizer = OPTIMISERS[opt] and OPTIMISERS[opt](model.parameters())
    loader = torch.utils.data.DataLoader(ROWS, batch_size=8, sampler=torch.utils.data.RandomSampler(ROWS, generator=torch.Generator().manual_seed(6)), generator=torch.Generator().manual_seed(5))
    if warm:
        train(model, optimizer, loader, dtype)
        step(model, None, ROWS[0][0][None].to(dtype).repeat(2, 1), torch.tensor([0, 1]))  # gradients are left waiting
    return model, optimizer, loader, dtype


@pytest.mark.parametrize('opt', OPTIMISERS)
@pytest.mark.parametrize('model', MODELS)
@pytest.mark.parametrize('warm', [False, True])
def test_same_objects_same_bits(model, opt, warm):
    if model == 'sparse' and opt in ('adam', 'adamw', 'rmsprop'): pytest.skip('these optimisers refuse sparse gradients')
    for how in range(6):
        m, o, loader, dtype = setting(model, opt, warm)
        things = (m, loader, *([o] if o else []))
        before, at = bits(m, o, loader.generator, loader.sampler.generator), globally()
        copies = 'cpu' if how == 5 else None
        try:
            with untouched(*things, copies=copies):
                train(m, o, loader, dtype)
                spoil(m, o, how)
                if how == 3: raise RuntimeError('broken')
                if how == 4: raise KeyboardInterrupt
        except (RuntimeError, KeyboardInterrupt): assert how in (3, 4)
        else: assert how not in (3, 4)
        assert bits(m, o, loader.generator, loader.sampler.generator) == before and globally() == at, how
        if how: continue
        train(m, o, loader, dtype)
        plain = setting(model, opt, warm)
        train(*plain)
        assert all(torch.equal(a, b) or a.isnan().any() for a, b in zip(m.parameters(), plain[0].parameters()))


def test_the_comparison_sees_what_was_spoiled():
    for how in range(6):
        m, o, loader, dtype = setting('odd', 'adam', True)
        before = bits(m, o), globally()
        with untouched(): spoil(m, o, how); after = bits(m, o), globally()
        assert after != before, how
    m, o, loader, dtype = setting('odd', 'adam', True)
    before = bits(m)
    m.nan[1] = -m.nan[1]  # 0. and -0. are equal, their bits are not
    assert bits(m) != before


# ---- learners, as deeper and the finder use them ---------------------------------------------------------------------
class Counts(Callback):
    def __init__(self): self.calls, self.seen, self.tensor = 0, [], torch.zeros(1)
    def before_batch(self): self.calls += 1; self.seen.append(self.calls); self.tensor += 1


def learner(kind):
    set_seed(1)
    dls = DataLoaders(DataLoader(ROWS, bs=8, shuffle=True), DataLoader(ROWS, bs=8), device='cpu')
    opt_func = partial(OptimWrapper, opt=torch.optim.AdamW) if kind == 'torch' else Adam
    learn = Learner(dls, plain(), loss_func=nn.CrossEntropyLoss(), opt_func=opt_func, cbs=Counts(), splitter=lambda m: [list(m[:2].parameters()), list(m[2:].parameters())])
    if kind == 'fp16': learn = learn.to_fp16()
    if kind == 'frozen': learn.freeze()
    if kind != 'fresh':
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, 1e-2)
    return learn


@pytest.mark.parametrize('kind', ['fresh', 'trained', 'torch', 'frozen', 'fp16'])
@pytest.mark.parametrize('copies', [None, 'cpu'])
def test_learner(kind, copies):
    learn = learner(kind)
    before, at, opt = bits(learn.model, learn.opt, learn.dls.train.rng, *learn.cbs), globally(), learn.opt
    with untouched(learn, copies=copies):
        if learn.opt is None: learn.create_opt()
        learn.unfreeze()
        with learn.no_bar(), learn.no_logging(): learn.fit(1, .1)
        learn.add_cb(Callback()); learn.left = 'behind'
    assert learn.opt is opt and not hasattr(learn, 'left')
    assert bits(learn.model, learn.opt, learn.dls.train.rng, *learn.cbs) == before and globally() == at


def test_a_step_of_one_batch_with_gradients_waiting():
    "As `largest_batch` does it: steps on the learner's own optimiser, gradients dropped between them."
    learn = learner('trained')
    x, y = learn.dls.train.one_batch()
    learn.loss_func(learn.model(x), y).backward()
    before = bits(learn.model, learn.opt)
    with untouched(learn, copies='cpu'):
        for p in learn.model.parameters(): p.grad = None
        for _ in range(2): learn.loss_func(learn.model(x), y).backward(); learn.opt.step(); learn.opt.zero_grad()
    assert bits(learn.model, learn.opt) == before


def test_data_goes_on_where_it_is_asked_to():
    learn = learner('trained')
    before, at = bits(learn.model, learn.opt), learn.dls.train.rng.getstate()
    with untouched(learn, data=False), learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert bits(learn.model, learn.opt) == before and learn.dls.train.rng.getstate() != at


# ---- again, interrupted, nested ---------------------------------------------------------------------------------------
def test_a_memory_restores_as_often_as_it_is_asked():
    m, o, loader, dtype = setting('odd', 'adam', True)
    before = bits(m, o)
    with untouched(m, o, loader) as memory:
        for _ in range(3):
            train(m, o, loader, dtype)
            memory.restore()
            assert bits(m, o) == before
        with untouched(m, o, data=False): train(m, o, loader, dtype)
        assert bits(m, o) == before


@pytest.mark.parametrize('how', ['signal', 'raised'])
def test_ctrl_c_at_every_step_of_restoring(how):
    m, o, loader, dtype = setting('odd', 'adam', True)
    before, steps = bits(m, o), len(untouched(m, o).undo)
    for place in range(0, steps + 1, 7):
        memory, hit = untouched(m, o), []
        def press():
            hit.append(1)
            if how == 'signal': signal.raise_signal(signal.SIGINT); signal.raise_signal(signal.SIGINT)
            elif len(hit) == 1: raise KeyboardInterrupt
        memory.undo.insert(place, press)
        with pytest.raises(KeyboardInterrupt):
            with memory: train(m, o, loader, dtype)
        assert hit and bits(m, o) == before
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_in_another_thread():
    m, o, loader, dtype = setting('plain', 'adam', True)
    before, done = bits(m, o), []
    def run():
        with untouched(m, o): train(m, o, loader, dtype)
        done.append(bits(m, o) == before)
    t = threading.Thread(target=run); t.start(); t.join()
    assert done == [True]


def test_one_failing_part_does_not_keep_the_others():
    m, o, loader, dtype = setting('plain', 'adam', True)
    before, memory = bits(m, o), untouched(m, o)
    for place in (0, 3, len(memory.undo)): memory.undo.insert(place, lambda: 1/0)
    with pytest.raises(ZeroDivisionError):
        with memory: train(m, o, loader, dtype)
    assert bits(m, o) == before


# ---- memory ---------------------------------------------------------------------------------------------------------
def _bytes():
    gc.collect()
    kept = {}
    for o in gc.get_objects():
        if type(o) in (torch.Tensor, nn.Parameter): kept[o.untyped_storage().data_ptr()] = o.untyped_storage().nbytes()
    return sum(kept.values())


def test_one_copy_and_none_after():
    model = nn.Sequential(nn.Linear(500, 500), nn.Linear(500, 500))
    model[1].weight = model[0].weight
    opt = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 500)).sum().backward(); opt.step()
    weights = sum(p.nbytes for p in model.parameters())
    before = _bytes()
    with untouched(model, opt) as memory:
        during = _bytes() - before
        assert 4*weights <= during <= 4.02*weights, during/weights  # weights, gradients, two moments
        copy_of = weakref.ref(memory.tensor(model[0].weight))
    del memory
    assert _bytes() == before and copy_of() is None


def test_lazy_layers_are_refused_before_anything_happens():
    m = nn.Sequential(nn.Linear(3, 3), nn.LazyLinear(2))
    with pytest.raises(ValueError, match='give the model one batch first'): untouched(m)
    m(torch.ones(1, 3))
    with untouched(m): pass


def test_unknown_objects_are_left_alone():
    class Mine:
        def __init__(self): self.count = 0
    m, mine = nn.Linear(2, 2), Mine()
    m.mine = mine
    with untouched(m): mine.count = 3
    assert mine.count == 3 and m.mine is mine
    with untouched(mine): mine.count = 4
    assert mine.count == 3
    memory = Memory()
    memory.keep(copy); memory.keep(len); memory.keep(Mine)
    assert not memory.undo
