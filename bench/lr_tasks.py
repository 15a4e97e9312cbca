"""The tasks on which bench/lr_finder.py compares learning-rate finders, and what would refute which claim.

Written down before the method was changed (the table of names and halves, and the claims).

TUNING: everything that a number of the method may be chosen on. The first eight are those of the earlier benchmark, so
they have been looked at many times; of 'paper probe' and 'digits by four' the issue told numbers.
HELD_OUT: not looked at until the method stands, and run once.

Claims, and what would refute each (on the held-out half, and on all; at least 5 seeds, 3 where a run takes over 20 s):
1. race: median and worst regret below those of every rival, plain 1e-3 / 2e-3 / 3e-3 and the best constant in hindsight
   included. Refuted by any rival whose median or worst regret is smaller.
2. race: its error exceeds the lowest of the sweep by at most one standard error of the truth, in the median task.
3. race: at most half the time of one training at the named length. Refuted by a median share above 0.5.
4. test: never worse than the best constant by more than 0.03 in the median of a task; lowest worst regret and lowest
   spread over seeds among the tests. Refuted by one task, or by one rival test.
5. test: at most half the seconds of fastai's default; features mode at most 1/15.
6. interval: 90 % of the answers from other seeds and orders lie within it. Refuted by a share below 0.9 of pairs
   (interval of one seed, answer of another) over all tasks.
A refusal counts as 2e-3. Regret: validation loss above the lowest of the sweep, read off in log rate.
"""
import copy, os, tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

TUNING = ('clothing head', 'digits CNN', 'paper pets frozen', 'pets head', 'tabular MLP', 'diabetes MLP',
          'paper pets unfrozen', 'clothing unfrozen', 'paper probe', 'digits by four', 'digits probe')
HELD_OUT = ('wine by eight', 'zero head', 'twenty pictures', 'half-trained CNN', 'digits autoencoder', 'friedman MLP',
            'letters LSTM', 'letters transformer', 'lite1 unfrozen', 'clothing probe', 'pets probe')
SLOW = ('paper probe', 'lite1 unfrozen', 'clothing probe', 'pets probe')
KINDS = {
    'clothing head': "fastai's head on frozen features of photographs, Adam",
    'paper pets frozen': "fastai's head on frozen features of drawn pictures, Adam",
    'pets head': "fastai's head on frozen features, 37 breeds, Adam",
    'digits CNN': 'small network from scratch, SGD', 'tabular MLP': 'table, AdamW', 'diabetes MLP': 'regression, SGD',
    'paper pets unfrozen': 'lite0 and a new head, 48 px, batch-norm moving, Adam',
    'clothing unfrozen': 'the same on photographs',
    'paper probe': 'lite0 after a linear probe, 96 px, batch-norm held, slice(r/10, r), Adam',
    'digits by four': 'batches of 4, Adam', 'digits probe': 'small network of other digits after a linear probe, Adam',
    'wine by eight': 'table, 125 rows, batches of 8, RMSprop', 'zero head': 'one layer that begins at zero, Adam',
    'twenty pictures': 'a head on 20 pictures', 'half-trained CNN': 'a network in the middle of its training, Adam',
    'digits autoencoder': 'squared error of pixels, Adam', 'friedman MLP': 'regression, SGD without momentum',
    'letters LSTM': 'next letter, SGD, gradients clipped', 'letters transformer': 'next letter, AdamW, no warm-up',
    'lite1 unfrozen': 'lite1 and a new head, 96 px, batch-norm held, Adam',
    'clothing probe': 'as paper probe, photographs', 'pets probe': 'as paper probe, 37 breeds'}
GROUPS = {**dict.fromkeys(('clothing head', 'paper pets frozen', 'pets head', 'zero head', 'twenty pictures'), 'new head, Adam'),
          **dict.fromkeys(('digits CNN', 'diabetes MLP', 'friedman MLP', 'letters LSTM'), 'small network, SGD'),
          **dict.fromkeys(('tabular MLP', 'digits by four', 'wine by eight', 'half-trained CNN', 'digits autoencoder', 'letters transformer'),
                          'small network, Adam or RMSprop'),
          **dict.fromkeys(('paper pets unfrozen', 'clothing unfrozen', 'lite1 unfrozen'), 'whole network, new head'),
          **dict.fromkeys(('paper probe', 'clothing probe', 'pets probe', 'digits probe'), 'whole network after a probe')}
CACHE = Path(os.environ.get('CH5CLF_CACHE', tempfile.gettempdir()))/'bench-lr-finder'


def rates(low, high, a_decade=3): return np.logspace(low, high, a_decade*(high - low) + 1)


# ---- data ---------------------------------------------------------------------------------------------------------
def _pictures(name, photos):
    from ch5clf.sample import paper_pets
    if not name.startswith(('pets', 'clothing')): return paper_pets()
    if photos is None: raise SystemExit(f'{name}: give the folder of the photos with --photos')
    return Path(photos)/('pets_dev' if name.startswith('pets') else 'clothing_dev')/'images'


def _stored(file, make):
    CACHE.mkdir(parents=True, exist_ok=True)
    if not (CACHE/file).exists(): torch.save(make(), CACHE/file)
    return torch.load(CACHE/file, weights_only=True)


def _features(name, photos):
    "Features of the frozen body: one augmented view of each training picture, and the validation pictures."
    def make():
        from ch5clf.data import pet_dls
        from ch5clf.features import frozen_features
        from ch5clf.pretrained import lite0
        from fastai.vision.all import vision_learner
        dls = pet_dls(_pictures(name, photos), num_workers=0)
        learn = vision_learner(dls, lite0)
        x, y, _ = frozen_features(learn, dls.valid.new(dls.train_ds))
        xv, yv, _ = frozen_features(learn, dls.valid)
        return [x.half(), y, xv.half(), yv]
    return [t.float() if t.is_floating_point() else t for t in _stored(f'{name.split()[0]}-128.pt', make)]


def _pixels(name, photos, size, most=288):
    "Pictures as small tensors, for the unfrozen tasks: so many that a laptop can sweep a truth."
    def make():
        from ch5clf.data import pet_dls
        dls = pet_dls(_pictures(name, photos), size=size, presize=size*5//4, num_workers=0)
        out = []
        for dl in (dls.valid.new(dls.train_ds), dls.valid):
            xs, ys = zip(*[(x.as_subclass(torch.Tensor), y.as_subclass(torch.Tensor)) for x, y in dl])
            out += [torch.cat(xs).half(), torch.cat(ys)]
        return out
    x, y, xv, yv = _stored(f'{name.split()[0]}-pixels-{size}.pt', make)
    some = torch.randperm(len(x), generator=torch.Generator().manual_seed(42))[:most]
    return [(x[some].float() - .5)/.5, y[some], (xv.float() - .5)/.5, yv]


def _split(x, y, share=.3):
    g = torch.Generator().manual_seed(42)
    order, cut = torch.randperm(len(x), generator=g), round(len(x)*(1 - share))
    return [x[order[:cut]], y[order[:cut]], x[order[cut:]], y[order[cut:]]]


def _digits():
    from sklearn.datasets import load_digits
    d = load_digits()
    return _split(torch.tensor(d.images, dtype=torch.float32)[:, None]/8 - 1, torch.tensor(d.target))


def _table(loader, classes=True):
    d = loader()
    x, y = torch.tensor(d.data, dtype=torch.float32), torch.tensor(d.target)
    if not classes: y = ((y - y.mean())/y.std()).float()[:, None]
    return _split((x - x.mean(0))/x.std(0), y)


def _letters(length=48, rows=768):
    "Help texts that Python brings: each letter is asked for after those before it. The last fifth validates."
    import pydoc_data.topics
    text = '\n'.join(pydoc_data.topics.topics[k] for k in sorted(pydoc_data.topics.topics))[:length*rows + 1]
    letters = sorted(set(text))
    codes = torch.tensor([letters.index(c) for c in text])
    x, y = codes[:-1].view(rows, length), codes[1:].view(rows, length)
    cut = rows*4//5
    return [x[:cut], y[:cut], x[cut:], y[cut:]], len(letters)


# ---- models -------------------------------------------------------------------------------------------------------
def _head(n, classes):
    "The layers of fastai's head that come after pooling and flattening."
    from fastai.vision.learner import create_head
    return nn.Sequential(*list(create_head(n//2, classes))[2:])


def _block(i, o): return [nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU()]


def _digits_cnn():
    return nn.Sequential(*_block(1, 16), *_block(16, 32), nn.MaxPool2d(2), *_block(32, 64), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(64, 10))


def _mlp(n, out): return nn.Sequential(nn.Linear(n, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, out))


def _autoencoder():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 64),
                         nn.ReLU(), nn.Linear(64, 64))


class _LSTM(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.emb, self.rnn, self.out = nn.Embedding(n, 32), nn.LSTM(32, 96, batch_first=True), nn.Linear(96, n)
    def forward(self, x): return self.out(self.rnn(self.emb(x))[0])


class _Transformer(nn.Module):
    def __init__(self, n, length, width=64):
        super().__init__()
        self.emb, self.place = nn.Embedding(n, width), nn.Parameter(.02*torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2*width, dropout=0., batch_first=True, norm_first=True)
        self.body, self.out = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(width, n)
        self.register_buffer('mask', nn.Transformer.generate_square_subsequent_mask(length))
    def forward(self, x): return self.out(self.body(self.emb(x) + self.place, mask=self.mask, is_causal=True))


def _probed(body, data, length=1.):
    "The layer that logistic regression finds on the features of a body, as the recipe of chapter 03 begins."
    from ch5clf.recipe import linear_head, logistic_regression
    body = body.eval()
    with torch.no_grad():
        pooled = [body(x).mean((2, 3)) for x in data[0].split(64)]
        features = F.normalize(torch.cat(pooled), dim=1)*length
    classes = int(data[1].max()) + 1
    weight, bias = logistic_regression(features, data[1], classes, 30.)
    head = linear_head(features.shape[1], classes, length)
    head[-1].load_state_dict(dict(weight=weight, bias=bias))
    return nn.Sequential(body, head)


def _lite(arch, classes):
    from ch5clf import pretrained
    from fastai.vision.learner import create_vision_model
    return create_vision_model(getattr(pretrained, arch), classes)


def _copied(make, file):
    "A function that gives copies of a model, made once."
    model = make()
    state = _stored(file, model.state_dict)
    model.load_state_dict(state)
    return lambda: copy.deepcopy(model)


def _other_digits():
    "A body that learned digits turned by a quarter, and a probe of 150 upright ones."
    from fastai.basics import set_seed
    set_seed(0)
    model, (x, y, *_) = _digits_cnn(), _digits()
    opt = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(6):
        for rows in torch.randperm(len(x)).split(32):
            opt.zero_grad(); F.cross_entropy(model(x[rows].rot90(1, (2, 3))), y[rows]).backward(); opt.step()
    return model[:10]


def _half_trained():
    from fastai.basics import set_seed
    set_seed(0)
    model, (x, y, *_) = _digits_cnn(), _digits()
    opt = torch.optim.Adam(model.parameters(), 1e-3)
    for rows in torch.randperm(len(x)).repeat(3).split(32):
        opt.zero_grad(); F.cross_entropy(model(x[rows]), y[rows]).backward(); opt.step()
    return model


# ---- tasks --------------------------------------------------------------------------------------------------------
def task(name, photos=None):
    "Data, a function that makes the model, and how it is trained. `rates`: those of the truth."
    def made(data, make, opt='Adam', bs=32, epochs=5, sweep=rates(-4, 0), **more):
        return SimpleNamespace(**{**dict(name=name, data=data, make=make, opt=opt, bs=bs, epochs=epochs, rates=sweep,
                                         loss=nn.CrossEntropyLoss(), error=True, held=False, spread=1, clip=None), **more})
    if name in ('clothing head', 'paper pets frozen', 'pets head'):
        data = _features(name, photos)
        return made(data, lambda: _head(data[0].shape[1], int(data[1].max()) + 1))
    if name == 'zero head':
        data = _features('pets', photos)
        def zero():
            layer = nn.Linear(data[0].shape[1], int(data[1].max()) + 1)
            nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
            return nn.Sequential(layer)
        return made(data, zero)
    if name == 'twenty pictures':
        x, y, *valid = _features('paper', photos)
        some = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))[:20]
        return made([x[some], y[some], *valid], lambda: _head(x.shape[1], 12), bs=8, epochs=10)
    if name.startswith('digits') or name == 'half-trained CNN': return _digits_task(name, made)
    if name.startswith('letters'): return _letters_task(name, made)
    if name in ('tabular MLP', 'diabetes MLP', 'wine by eight', 'friedman MLP'): return _table_task(name, made)
    return _body_task(name, photos, made)


def _digits_task(name, made):
    data = _digits()
    if name == 'digits CNN': return made(data, _digits_cnn, 'SGD', epochs=3, sweep=rates(-3, 1))
    if name == 'digits by four': return made([x[:300] for x in data], _digits_cnn, bs=4, epochs=3)
    if name == 'half-trained CNN': return made(data, _copied(_half_trained, 'half-trained.pt'), epochs=3)
    if name == 'digits autoencoder':
        x, _, xv, _ = data
        return made([x, x.flatten(1), xv, xv.flatten(1)], _autoencoder, loss=nn.MSELoss(), error=False)
    few = [data[0][:150], data[1][:150], *data[2:]]
    make = _copied(lambda: _probed(_other_digits(), few), 'digits-probe.pt')
    return made(few, make, bs=16, epochs=8, held=True, spread=10)


def _table_task(name, made):
    from sklearn import datasets
    if name == 'tabular MLP': return made(_table(datasets.load_breast_cancer), lambda: _mlp(30, 2), 'AdamW', 16)
    if name == 'wine by eight': return made(_table(datasets.load_wine), lambda: _mlp(13, 3), 'RMSprop', 8)
    if name == 'diabetes MLP':
        data = _table(datasets.load_diabetes, classes=False)
        return made(data, lambda: _mlp(10, 1), 'SGD', 16, loss=nn.MSELoss(), error=False)
    x, y = datasets.make_friedman1(800, random_state=0)
    data = _table(lambda: SimpleNamespace(data=x, target=y), classes=False)
    return made(data, lambda: _mlp(10, 1), 'plain SGD', 16, sweep=rates(-3, 1), loss=nn.MSELoss(), error=False)


class _EachLetter(nn.Module):
    "Cross-entropy over all places of all rows."
    def forward(self, out, target): return F.cross_entropy(out.flatten(0, 1), target.flatten())


def _letters_task(name, made):
    data, n = _letters()
    if name == 'letters LSTM':
        return made(data, lambda: _LSTM(n), 'SGD', 16, 4, rates(-2, 2), loss=_EachLetter(), clip=.5)
    return made(data, lambda: _Transformer(n, 48), 'AdamW', 16, 4, loss=_EachLetter())


def _body_task(name, photos, made):
    if name in ('paper pets unfrozen', 'clothing unfrozen'):
        data = _pixels(name, photos, 48)
        sweep = np.union1d(rates(-5, -1, 2), rates(-4, -1))
        return made(data, lambda: _lite('lite0', int(data[1].max()) + 1), bs=16, epochs=2, sweep=sweep)
    if name == 'lite1 unfrozen':
        data = _pixels('paper', photos, 96)
        return made(data, lambda: _lite('lite1', int(data[1].max()) + 1), bs=16, epochs=3, sweep=rates(-5, -1), held=True)
    if name in ('paper probe', 'clothing probe', 'pets probe'):
        data = _pixels(name, photos, 96)
        make = _copied(lambda: _probed(_lite('lite0', 2)[0], data), f'{name}.pt')
        return made(data, make, bs=16, epochs=4, sweep=rates(-5, -1), held=True, spread=10)
    raise SystemExit(f'{name}: no such task; there are {", ".join(TUNING + HELD_OUT)}')


class Rows:
    "A data set of tensors in memory."
    def __init__(self, x, y): self.x, self.y = x, y
    def __len__(self): return len(self.x)
    def __getitem__(self, i): return self.x[i], self.y[i]


def wrong(out, target): return (out.argmax(-1) != target).float().mean()


def learner(t, seed):
    "A fastai learner of a task, from this seed's weights (a pretrained start is one) and order."
    import fastai.callback.progress, fastai.callback.schedule  # noqa: E401, F401 (they add to Learner)
    from ch5clf.callbacks import frozen_batchnorm
    from fastai.basics import Adam, DataLoader, DataLoaders, Learner, OptimWrapper, params, set_seed
    from fastai.callback.training import GradientClip
    set_seed(seed)
    torch_opts = {'SGD': partial(torch.optim.SGD, momentum=.9), 'plain SGD': torch.optim.SGD,
                  'AdamW': torch.optim.AdamW, 'RMSprop': torch.optim.RMSprop}
    opt = Adam if t.opt == 'Adam' else partial(OptimWrapper, opt=torch_opts[t.opt])
    x, y, xv, yv = t.data
    dls = DataLoaders(DataLoader(Rows(x, y), bs=t.bs, shuffle=True, drop_last=True), DataLoader(Rows(xv, yv), bs=256),
                      device='cpu')
    grouped = t.held or t.spread != 1
    split = (lambda m: [params(m[0]), params(m[1])]) if grouped else params
    cbs = [*([frozen_batchnorm()] if t.held else []), *([GradientClip(t.clip)] if t.clip else [])]
    return Learner(dls, t.make(), loss_func=t.loss, opt_func=opt, splitter=split, cbs=cbs,
                   metrics=wrong if t.error else None, path=tempfile.gettempdir())


def shaped(t, rate):
    "The rates that fastai is given when the last group has this one."
    return slice(rate/t.spread, rate) if t.spread != 1 else float(rate)
