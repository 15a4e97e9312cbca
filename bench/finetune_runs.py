"""Record the runs of the fine-tuning chapter: `python bench/finetune_runs.py [--photos DIR] [--queue arc:paper:1-10 ...] [--seconds 3600] [--out DIR]`.

Everything at 128 px with lite0 in float32, one process and one thread; seconds are seconds of the processor, which other programs
hardly change; rows of another machine name it, and have no seconds. With CUDA the runs are made there (float32 without TF32). A job is a part, a set and seeds, such as `factorial:paper:3`; `arc:pets+clothing:1-5:full` takes the full sizes alone. Each
finished run is written at once (as a whole file), and a run that is there already is not run again: stop the script whenever you like,
and call it again. DIR holds pets_dev/images and clothing_dev/images (real photographs, not in this repository); without it the photo
jobs are passed over.

A seed draws what is chance: the pictures (paper pets are drawn anew), the split (photographs: which are held out for the test), the head's
first weights, and the order of the batches. All arms of a seed share them. Errors are measured by `ch5clf.measure` on pictures that
nothing was chosen on: 480 others for paper pets, 6 a breed (222) for pets, 16 a kind (160) for clothes. Nothing is tuned here: rates and
C are those of a first look, at seed 42 of paper pets and at one division of the same photographs.

Written down before the runs. All differences are paired by seed; "shown" means that the 95 % interval of the mean difference (a bootstrap
over seeds when this was written; the chapter uses Student's t now, which decides less) lies on one side of zero; "no worse" that it lies within 2 points.

arc: test error and seconds against pictures a class. Arms: fastai's head on features; `fine_tune(3)`; the same with batch-norm held;
  features, then 4 epochs of everything at slice(1e-5, 1e-3), batch-norm held; linear probe (logistic regression, C = 30, features of
  length 1); the probe, then 4 epochs of everything at slice(3e-4, 3e-3), batch-norm held ("recipe").
  Claims, each for all the training pictures there are:
  A1 the recipe makes at most half of `fine_tune(3)`'s errors on paper pets. Refuted if the ratio of the mean errors is above 0.5.
  A2 the recipe makes fewer errors than `fine_tune(3)` with batch-norm held on each set. Refuted where the interval reaches zero or more.
  A3 the probe alone makes no more errors than `fine_tune(3)`. Refuted where the interval reaches above +2 points.
  A4 the less a set is like ImageNet, the more unfreezing pays: recipe minus probe is lower on paper than on clothes, and on clothes
     than on pets. Refuted where the order of the three means is another; not decided where neighbours' intervals overlap.
factorial: four epochs of everything on all 576 paper pets. Head (fastai's / one linear layer on features of length 1) x start (random /
  trained on features: fastai's head for 20 epochs at 3e-3, the linear one by the probe) x body's rate (that of `fine_tune`:
  1e-5, 1e-4 / ten times as much; the head's is 1e-3 in both) x batch-norm (moving / held).
  F1 to F4: each factor's main effect (mean over the eight pairs of cells that differ in it alone) is shown. Refuted where it reaches zero.
  Besides, one change at a time: the head's rate (slice(3e-4, 3e-3)) and a larger base rate for plain `fine_tune` (2e-2), moving and held.
  Afterwards (written down before these runs) the same cells on all training photographs, F1 to F4 told for each set.
many: the arms of arc with 300 training pictures a class (paper pets drawn for it; 3,600), the same 480 test pictures.
  M1: the recipe makes fewer errors than `fine_tune(3)`. Refuted where the interval reaches zero or more.
  M2: batch-norm held makes fewer errors than moving in `fine_tune(3)`. Refuted where the interval reaches zero or more.
rates: the recipe, but with one rate for all layers: 3e-3, the last of its slice, and 1e-3, its middle. Paired with the recipe of `arc`.
  R1: slice(3e-4, 3e-3) makes fewer errors than either. Refuted, for a set, where one of the intervals lies above zero; not decided
     where one reaches zero.
epochs: the recipe with 1, 2 and 8 epochs, the last one watched: a whole short cycle against stopping the long one early (at the first rise
  of the validation loss) and at its best validation error. E1: the whole cycle of 8 makes fewer errors than the one stopped early.
statistics: a trained head, and then training without a single step (rate 0): batch-norm's running statistics alone move.
  S1: after one epoch of this the head's error is higher than before. Refuted where the interval reaches zero or less.
bodies: the linear probe, one epoch at rate 0, and the probe fitted anew on what the moved statistics make: lite0, lite1, lite2, and a small
  residual network (resnet10t) trained from scratch on paper pets of another seed, which are at home there and strangers among photographs.
  Beside it, how alike (cosine) a picture's features are before and after.
  B1: moved statistics raise the probe's error with each lite body on each set. Refuted where the interval reaches zero or less.
  B2: on paper pets they raise it less with the residual network than with lite0. Refuted where the interval of the difference reaches zero.
"""
import argparse, copy, json, os, platform, time, warnings
from datetime import date
from functools import lru_cache
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from filelock import FileLock
from fastai.vision.all import Callback, CategoryBlock, DataBlock, ImageBlock, IndexSplitter, error_rate, no_random, set_seed, vision_learner

from ch5clf.callbacks import NoValidation, frozen_batchnorm, norms_of
from ch5clf.data import breed_of
from ch5clf.features import feature_fit, frozen_features
from ch5clf.measure import measure
from ch5clf.places import cache_folder, versions, write_atomic
from ch5clf.presize import PresizeDL, presize_store
from ch5clf.pretrained import lite0, lite1, lite2
from ch5clf.recipe import linear_head, linear_probe, unfrozen_fit
from ch5clf.sample import paper_pets, paper_pets_test

SIZE, PRESIZE, EPOCHS = 128, 160, 4
LOW, HIGH, BODY = slice(1e-5, 1e-3), slice(3e-4, 3e-3), [1e-4, 1e-3, 1e-3] # of fine_tune; of the recipe; fine_tune's, its body ten times
STEPS = dict(paper=(48, 8, 16, 32), pets=(24, 8, 16), clothing=(64, 16, 32), many=(300,)) # training pictures a class: all there are, then fewer
NAMES = dict(paper='paper pets', pets='Oxford pets', clothing='clothing')
DRAWN = dict(paper=60, many=375) # paper pets of each breed, a fifth of them for validation
HELD_OUT = dict(pets=6, clothing=16) # a class
QUEUE = '''
    arc:paper:1-2:full arc:pets+clothing:1:full factorial:paper:1 arc:paper:1 statistics:paper:1-3 arc:paper:3-5:full arc:pets+clothing:2-3:full
    factorial:paper:2-3 epochs:paper:1-2 arc:paper:2-3 arc:pets+clothing:1-2 arc:paper:6-10:full arc:pets+clothing:4-5:full factorial:paper:4-5
    statistics:paper:4-10 arc:paper:4-10 arc:pets+clothing:3-5 epochs:paper:3-10 factorial:paper:6-10'''.split() # so that all parts have some seeds early
ABOUT = __doc__.split('\n\n')[1].replace('\n', ' ').split(' A job')[0] + ' ' + __doc__.split('\n\n')[2].replace('\n', ' ')


# --- pictures ---

@lru_cache(2)
def files_of(kind, seed, photos):
    "Training files by class (in the seed's order), validation files, test files."
    if kind in DRAWN:
        path = paper_pets(seed=seed, per_breed=DRAWN[kind])
        split = pd.read_csv(path/'labels.csv').set_index('name')['split']
        found = sorted((path/'images').glob('*.jpg'))
        train, valid = ([f for f in found if split[f.name] == part] for part in ('train', 'valid'))
        test = sorted((paper_pets_test(path)/'images').glob('*.jpg'))
    else:
        rng, train, test, valid = np.random.default_rng(seed), [], [], []
        by_class = {}
        for f in sorted((photos/f'{kind}_dev'/'images').glob('*.jpg')): by_class.setdefault(breed_of(f), []).append(f)
        for found in by_class.values():
            found = [found[i] for i in rng.permutation(len(found))]
            test, train = test + found[:HELD_OUT[kind]], train + found[HELD_OUT[kind]:]
    rng, by_class = np.random.default_rng([seed, 1]), {}
    for i in rng.permutation(len(train)): by_class.setdefault(breed_of(train[i]), []).append(train[i])
    return by_class, valid, test


def name_of(kind): return NAMES[kind if kind in NAMES else 'paper']


def loaders(kind, seed, photos, per_class):
    "Loaders with so many training pictures a class; validation and test files. Without validation files, some training pictures stand there unused."
    by_class, valid, test = files_of(kind, seed, photos)
    train = [f for found in by_class.values() for f in found[:per_class]]
    files = [*train, *(valid or [found[0] for found in by_class.values()])]
    every = sorted(f for found in by_class.values() for f in found)
    store = presize_store([*every, *valid, *test], PRESIZE, threads=1, progress=False)
    block = DataBlock((ImageBlock, CategoryBlock), get_items=lambda _: files, get_y=breed_of, splitter=IndexSplitter(range(len(train), len(files))))
    bs = 32 if len(train) >= 300 else 16
    dls = block.dataloaders('.', bs=bs, num_workers=0, dl_type=PresizeDL, store=store, size=SIZE, presize=PRESIZE)
    return dls, valid, test


# --- one arm ---

class Arms:
    "The arms of one seed on one set of loaders: each begins with the same random numbers, and is measured on the same pictures."
    def __init__(self, kind, seed, photos, per_class):
        self.kind, self.seed, self.photos, self.per_class = kind, seed, photos, per_class
        self.dls, self.valid, self.test = loaders(kind, seed, photos, per_class)
        self.seconds = 0.

    def begin(self):
        "A new learner; the clock is at zero."
        set_seed(self.seed)
        learn = vision_learner(self.dls, lite0, metrics=error_rate)
        learn.remove_cb(learn.progress)
        learn.logger = lambda *_: None
        self.order()
        self.seconds = 0.
        return learn

    def order(self):
        set_seed(self.seed)
        self.dls.train.rng.seed(self.seed)

    def clocked(self, step, *args, **kwargs):
        start = time.process_time()
        step(*args, **kwargs)
        self.seconds += time.process_time() - start

    def row(self, arm, learn, **more):
        told = measure(learn, self.test)
        row = dict(set=name_of(self.kind), arm=arm, seed=self.seed, per_class=self.per_class, train=len(self.dls.train_ds), wrong=told.wrong, total=told.total,
                   error=told.error, loss=round(told.loss, 4), seconds=round(self.seconds, 1), **calibration(told))
        if self.valid: row |= scaled(told, measure(learn, self.valid))
        return row | more


def calibration(told, temperature=1., bins=10):
    "Mean confidence, and in each bin of confidence: pictures, mean confidence, share that is right."
    sure, said = (told.logits/temperature).softmax(1).max(1)
    right, place = (said == told.targets).float(), (sure*bins).long().clamp(max=bins - 1)
    rows = [(int(m.sum()), round(sure[m].mean().item(), 3), round(right[m].mean().item(), 3)) for b in range(bins) if (m := place == b).any()]
    return dict(sure=round(sure.mean().item(), 4), bins=rows)


def scaled(told, valid):
    "The temperature that suits the validation pictures best, and what it makes of the test pictures."
    grid = np.geomspace(.25, 6, 200)
    T = float(grid[np.argmin([F.cross_entropy(valid.logits/t, valid.targets).item() for t in grid])])
    after = calibration(told, T)
    return dict(valid_error=valid.error, valid_loss=round(valid.loss, 4), temperature=round(T, 3), scaled_loss=round(F.cross_entropy(told.logits/T, told.targets).item(), 4),
                scaled_sure=after['sure'], scaled_bins=after['bins'])


def held(on): return [frozen_batchnorm()] if on else []


def whole(learn, lr, bn_held=True, epochs=EPOCHS, cbs=()):
    learn.unfreeze()
    learn.fit_one_cycle(epochs, lr, cbs=[*(cbs or [NoValidation()]), *held(bn_held)])


# --- the parts: each yields rows; `known` says which arms are there already ---

def arc(arms, known):
    if not {'head on features', 'features, then unfrozen'} <= known:
        learn = arms.begin()
        arms.clocked(feature_fit, learn, 20, 3e-3, cbs=NoValidation())
        yield arms.row('head on features', learn)
        arms.order()
        arms.clocked(whole, learn, LOW)
        yield arms.row('features, then unfrozen', learn)
    for arm, hold in (('fine_tune', False), ('fine_tune, batch-norm held', True)):
        if arm in known: continue
        learn = arms.begin()
        arms.clocked(learn.fine_tune, 3, cbs=[NoValidation(), *held(hold)])
        yield arms.row(arm, learn)
    if not {'linear probe', 'recipe'} <= known:
        learn = arms.begin()
        arms.clocked(linear_probe, learn)
        yield arms.row('linear probe', learn)
        arms.order()
        arms.clocked(unfrozen_fit, learn, EPOCHS, HIGH, cbs=[NoValidation()])
        yield arms.row('recipe', learn)


def cells(arms):
    "Name, head, trained?, rates, batch-norm held? of each cell, those outside the factorial last."
    for head in ('fastai', 'linear'):
        for start in ('random', 'trained'):
            for rate, lr in (('low', LOW), ('ten times', BODY)):
                for hold in (False, True): yield head, start, rate, lr, hold
    yield 'fastai', 'trained', 'recipe', HIGH, True
    yield 'linear', 'random', 'recipe', HIGH, True
    yield 'linear', 'trained', 'recipe', HIGH, True
    yield 'linear', 'trained', 'recipe', HIGH, False


def start_of(arms, head, start):
    "A learner with that head, random or trained on features, and its state."
    learn = arms.begin()
    if head == 'linear' and start == 'random':
        learn.model[1] = linear_head(1280, len(arms.dls.vocab))
        learn.opt = None
    elif start == 'trained': linear_probe(learn) if head == 'linear' else feature_fit(learn, 20, 3e-3, cbs=NoValidation())
    return learn


def moved(learn, before):
    "How far the weights of each group went, relative to their size: root mean square over layers, batch-norm left out."
    norms = {id(p) for m in norms_of(learn.model) for p in m.parameters()}
    now, groups = dict(learn.model.named_parameters()), {id(p): i for i, g in enumerate(learn.opt.param_lists) for p in g}
    steps = {}
    for name, p in now.items():
        if id(p) not in norms and p.ndim > 1: steps.setdefault(groups[id(p)], []).append(((p.cpu() - before[name].cpu()).norm()/before[name].norm()).item())
    return [round(float(np.sqrt(np.mean(np.square(steps[g])))), 5) for g in sorted(steps)]


def factorial(arms, known):
    starts = {}
    for head, start, rate, lr, hold in cells(arms):
        bn = 'held' if hold else 'moving'
        arm = f'{head} head, {start}, {rate} rate, batch-norm {bn}'
        if arm in known: continue
        if (head, start) not in starts:
            learn = start_of(arms, head, start)
            starts[head, start] = learn, copy.deepcopy(learn.model.state_dict()), measure(learn, arms.test).wrong
        learn, state, before = starts[head, start]
        learn.model.load_state_dict(state)
        learn.opt = None
        arms.order()
        arms.seconds = 0.
        arms.clocked(whole, learn, lr, hold)
        yield arms.row(arm, learn, head=head, start=start, rate=rate, batchnorm=bn, wrong_before=before, moved=moved(learn, state))
    for hold in (False, True):
        arm = 'fine_tune at 2e-2' + (', batch-norm held' if hold else '')
        if arm in known: continue
        learn = arms.begin()
        arms.clocked(learn.fine_tune, 3, 2e-2, cbs=[NoValidation(), *held(hold)])
        yield arms.row(arm, learn)


class TestErrors(Callback):
    "Wrong test pictures after each epoch; nothing is chosen by them."
    def __init__(self, files): self.files, self.wrong = files, []
    def after_epoch(self):
        self.learn.model.eval()
        with no_random(), torch.no_grad():
            batches = self.learn.dls.test_dl(self.files, with_labels=True, bs=64) # made now: with Normalize
            plain = (tuple(t.as_subclass(torch.Tensor) for t in b) for b in batches)
            self.wrong.append(sum(int((self.learn.model(x).argmax(1) != y).sum()) for x, y in plain))


def first_rise(losses):
    "The epoch (from 1) after which fastai's EarlyStoppingCallback with a patience of one would have stopped."
    for epoch in range(1, len(losses)):
        if losses[epoch] >= min(losses[:epoch]): return epoch + 1
    return len(losses)


def epochs(arms, known):
    for n in (1, 2, 8):
        arm = f'recipe, {n} epochs'
        if arm in known: continue
        learn = arms.begin()
        arms.clocked(linear_probe, learn)
        arms.order()
        if n < 8:
            arms.clocked(unfrozen_fit, learn, n, HIGH, cbs=[NoValidation()])
            yield arms.row(arm, learn)
            continue
        seen = TestErrors(arms.test)
        arms.clocked(unfrozen_fit, learn, n, HIGH, cbs=[seen])
        train, valid, error = (list(map(float, v)) for v in zip(*learn.recorder.values))
        row = arms.row(arm, learn)
        if row['wrong'] != seen.wrong[-1]: raise RuntimeError(f'two ways to measure differ: {row["wrong"]} and {seen.wrong[-1]} of {row["total"]}')
        yield row | dict(train_losses=train, valid_losses=valid, valid_errors=error, test_wrong=seen.wrong, stopped=first_rise(valid), best=int(np.argmin(error)) + 1)


def rates(arms, known):
    for lr in (3e-3, 1e-3):
        arm = f'one rate of {lr:g}'
        if arm in known: continue
        learn = arms.begin()
        arms.clocked(linear_probe, learn)
        arms.order()
        arms.clocked(unfrozen_fit, learn, EPOCHS, lr, cbs=[NoValidation()])
        yield arms.row(arm, learn)


def statistics(arms, known):
    marks = (0, 1, 2, 4, 9, 18, 36)
    for head in ('fastai', 'linear'):
        arm = f'rate 0, {head} head'
        if arm in known: continue
        learn = start_of(arms, head, 'trained')
        arms.order()
        wrong, step = [measure(learn, arms.test).wrong], 0
        while step < marks[-1]:
            for x, _ in arms.dls.train:
                learn.model[0].train()
                with torch.no_grad(): learn.model[0](x.as_subclass(torch.Tensor))
                step += 1
                if step in marks: wrong.append(measure(learn, arms.test).wrong)
                if step == marks[-1]: break
        yield arms.row(arm, learn, steps=marks, wrong_after=wrong)


def small_resnet():
    "The weights of a small residual network's body, trained from scratch on paper pets that no other run sees."
    file = cache_folder()/'bench-resnet10t.pth'
    if not file.exists():
        arms = Arms('paper', 1001, None, STEPS['paper'][0])
        set_seed(1001)
        learn = vision_learner(arms.dls, 'resnet10t', pretrained=False)
        learn.remove_cb(learn.progress)
        learn.unfreeze()
        learn.fit_one_cycle(12, 3e-3, cbs=[NoValidation()])
        print(f'small residual network: {measure(learn, arms.test)}', flush=True)
        with NamedTemporaryFile(dir=file.parent, delete=False) as whole: torch.save(learn.model[0].state_dict(), whole)
        os.replace(whole.name, file)
    return torch.load(file, weights_only=True)


def bodies(arms, known):
    for name, arch in dict(lite0=lite0, lite1=lite1, lite2=lite2, resnet10t=None).items():
        if name in known: continue
        arms.dls, *_ = loaders(arms.kind, arms.seed, arms.photos, arms.per_class) # made anew: a body adds the Normalize that it wants
        set_seed(arms.seed)
        learn = vision_learner(arms.dls, arch, metrics=error_rate) if arch else vision_learner(arms.dls, 'resnet10t', pretrained=False, metrics=error_rate)
        if not arch: learn.model[0].load_state_dict(small_resnet())
        learn.remove_cb(learn.progress)
        linear_probe(learn)
        row = arms.row(name, learn)
        x, _, _ = frozen_features(learn, arms.dls.test_dl(arms.test, bs=64, with_labels=True))
        arms.order()
        learn.model[0].train()
        with torch.no_grad():
            for b in arms.dls.train: learn.model[0](b[0].as_subclass(torch.Tensor))
        after = measure(learn, arms.test)
        moved, _, _ = frozen_features(learn, arms.dls.test_dl(arms.test, bs=64, with_labels=True))
        linear_probe(learn)
        alike = F.cosine_similarity(x.flatten(1), moved.flatten(1)).mean().item()
        yield row | dict(wrong_moved=after.wrong, wrong_refitted=measure(learn, arms.test).wrong, cosine=round(alike, 3))


PARTS = dict(arc=arc, many=arc, factorial=factorial, rates=rates, epochs=epochs, statistics=statistics, bodies=bodies)
ARMS = dict(arc=6, many=6, factorial=22, rates=2, epochs=3, statistics=2, bodies=4)


# --- keeping and running ---

def this_machine():
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else 'one thread'
    return f'{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {where}'


def rows_of(file): return json.loads(file.read_text(encoding='utf-8'))['rows'] if file.exists() else []


def keep(file, row, about=ABOUT, timed=False):
    "Add a row; the file is whole at any moment. Seconds of another machine stay where `timed`: the caller compares within a machine."
    made = dict(date=f'{date.today()}', script=Path(__file__).name, machine=this_machine(), versions=versions())
    with FileLock(f'{file}.lock'): # two processes may do different jobs
        before = json.loads(file.read_text(encoding='utf-8'))['made'] if file.exists() else made
        if before['machine'] != made['machine']: # the file is of one machine; rows of another one say so
            row, made = row | dict(machine=f'{made["machine"]}, torch {made["versions"]["torch"]}'), before
            if not timed: row['seconds'] = None
        same = {k: row[k] for k in ('set', 'seed', 'per_class', 'arm')}
        others = [r for r in rows_of(file) if {k: r[k] for k in same} != same]
        rows = sorted([*others, row], key=lambda r: (list(NAMES.values()).index(r['set']), r['seed'], -r['per_class']))
        body = ',\n'.join(json.dumps(r, ensure_ascii=False) for r in rows)
        write_atomic(file, f'{{"about": {json.dumps(about, ensure_ascii=False)},\n"made": {json.dumps(made)},\n"rows": [\n{body}\n]}}\n')


def jobs(queue):
    "(part, set, seed, sizes) of words such as arc:pets+clothing:1-5 or arc:paper:3:full, seeds outermost."
    for word in queue:
        part, kinds, seeds, *full = word.split(':')
        first, last = (int(v) for v in f'{seeds}-{seeds}'.split('-')[:2])
        for seed in range(first, last + 1):
            for kind in kinds.split('+'): yield part, kind, seed, STEPS[kind] if part == 'arc' and not full else STEPS[kind][:1]


def run(part, kind, seed, sizes, photos, out, tell):
    file = out/f'finetune_{part}.json'
    for per_class in sizes:
        known = {r['arm'] for r in rows_of(file) if (r['set'], r['seed'], r['per_class']) == (name_of(kind), seed, per_class)}
        if len(known) == ARMS[part]: continue # asked first, so that a finished job costs nothing
        for row in PARTS[part](Arms(kind, seed, photos, per_class), known):
            if row['arm'] in known: continue
            keep(file, row)
            tell(f'{part} {row["set"]} seed {seed}, {per_class} a class, {row["arm"]}: {row["wrong"]} of {row["total"]}, {row["seconds"]} s')


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument('--photos', type=Path)
    ask.add_argument('--queue', nargs='*', default=QUEUE, help='jobs, in order')
    ask.add_argument('--seconds', type=float, default=float('inf'), help='begin no new job after so many seconds')
    ask.add_argument('--out', type=Path, default=Path(__file__).resolve().parents[1]/'ch5clf'/'runs')
    a = ask.parse_args()
    warnings.filterwarnings('ignore')
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False
    begun = time.monotonic()
    for part, kind, seed, sizes in jobs(a.queue):
        if time.monotonic() - begun > a.seconds: return
        if kind in DRAWN or a.photos: run(part, kind, seed, sizes, a.photos, a.out, lambda line: print(f'{time.monotonic() - begun:.0f} s', line, flush=True))


if __name__ == '__main__': main()
