"""Record the runs that the chapter on deeper networks draws: `python bench/deeper_runs.py [capacity] [grow] [photos --photos FOLDER]`.

Writes ch5clf/runs/deeper.json (capacity), deeper_grow.json and deeper_photos.json, for which FOLDER holds pets_dev/images/ (real
photos, not in this repository). A run that is recorded already, with the same arm and seed, is not repeated: delete the file to
begin anew. `--minutes 3` stops after the run in which they are over. `grow` gives every arm the same seconds of one core's work,
not of the clock on the wall, so other programs disturb little.

Claims, fixed before running. Differences are treatment minus baseline, in points of error, paired by seed; below zero is better.
A claim holds where the 95 % interval of the mean difference (Student's t over seeds; a bootstrap at first) lies on its side of zero, fails where it lies
on the other, and is not decided where it holds zero.

capacity, 20 seeds: (1) trained on many pictures, the large head repeats more of the wrong labels than the small one; (2) it makes
more test errors, because it learned wrong labels by heart; (3) to (5) augmentation, dropout, weight decay, each alone, lower the
large head's test error; (6) all three at full strength raise it. Added later, before their runs: (13) without the pictures whose labels are wrong
the large head makes fewer test errors, so learning them by heart harmed it; (14) it gains more by that than the small head, which learns fewer.
grow, 10 seeds, one thing changed against lite0 at 96 px, everything else and the seconds equal: (7) lite1, (8) lite2 (deeper
architectures), (9) 128 px, (10) pictures that grow from 64 to 96 px make fewer errors; (11) 64 px makes more; (12) the difference of
lite2 is lower (more in its favour) with three times the seconds.
"""
import argparse
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from fastai.vision.all import error_rate, get_image_files, set_seed, vision_learner
from torch import nn

from ch5clf.loaders import pet_dls
from ch5clf.features import frozen_features
from ch5clf.lesson import record
from ch5clf.places import cache_folder
from ch5clf.pretrained import lite0, lite1, lite2
from ch5clf.sample import paper_pets, paper_pets_test

RUNS = Path(__file__).resolve().parents[1]/'ch5clf'/'runs'
PASSES, KEPT, SEEDS, GROW_SEEDS = 6, 64, 20, 10
CAPACITY = (
    f'Heads on the features of a frozen lite0 (128 px, eval mode, normalised; the first {KEPT} principal components), paper pets, '
    '12 breeds. small: one linear layer; large: two hidden layers of 256. few: 10 training pictures of a breed, many: 48. A tenth of '
    'the training labels is replaced by another breed. Each seed draws the wrong labels, the few pictures, the first weights and the '
    'order. AdamW, one-cycle, batches of 64, 360 steps for all, peak rate 1e-2 for small, 2e-3 for large, weight decay 0 unless '
    f'named. augmentation: each epoch one of {PASSES} augmented passes; without the wrong labels: those pictures are left out, steps as before; dropout: 0.5 before each layer; weight decay: 10. Settings '
    'were chosen on validation with other seeds. loss: on the training pictures as labelled, eval mode, not augmented; memorised: '
    'share of the wrong labels that the head repeats; error: on 144 validation pictures; test_error: on 480 others.')
PHOTOS = (
    'As in deeper.json, on photos: 37 breeds of the Oxford pets, 30 photos each, a random fifth for validation. 720 steps. '
    'ImageNet, on which lite0 was trained, contains many of these breeds.')
GROW = (
    'ch5clf.growth.grow: so many seconds of one core for each rung (clock=time.process_time, one thread), a third of them for the '
    'head alone, the rest for the whole model with batch-norm of the body held. Each seed has paper pets of its own, 576 to train '
    'on, 144 to validate, and its own first weights, order and augmentation. Every picture normalised, at every size.')


def computed_features(path, test=None, passes=0, size=128):
    "Features (n, f) and targets: training pictures without augmentation and in augmented passes (a list), validation, test."
    set_seed(0)
    dls = pet_dls(path, size=size)
    learn = vision_learner(dls, lite0, metrics=error_rate)  # adds Normalize to `dls`: loaders made from now on have it too
    plain, y, _ = frozen_features(learn, dls.valid.new(dls.train_ds))
    train = dls.train.new(shuffle=False, drop_last=False)
    augmented = [frozen_features(learn, train)[0] for _ in range(passes)]
    held_out = [dls.valid] if test is None else [dls.valid, dls.test_dl(get_image_files(test), with_labels=True)]
    pairs = []
    for dl in held_out:
        x, t, rest = frozen_features(learn, dl)
        wrong = (rest.eval()(x).argmax(1) != t).float().mean().item()
        with learn.no_bar(), learn.no_logging(): theirs = learn.validate(dl=dl)[1]
        assert abs(wrong - theirs) < 1e-6, f'two ways to measure disagree: {wrong} from features, {theirs} from learn.validate'
        pairs.append((x, t))
    return [plain, *augmented], y, *pairs


def features(name, *args, **kwargs):
    "(passes + 1, n, KEPT) of the training pictures, their labels, and (features, labels) of validation and test: principal components."
    file = cache_folder()/f'deeper-features-{name}.pt'
    if not file.exists(): torch.save(computed_features(*args, **kwargs), file)
    passes, y, *held_out = torch.load(file)
    mean = passes[0].mean(0)
    torch.manual_seed(0)
    axes = torch.pca_lowrank(passes[0] - mean, q=KEPT, center=False, niter=4)[2]
    scale = ((passes[0] - mean)@axes).std()  # a spread of 1
    return torch.stack([(x - mean)@axes/scale for x in passes]), y, [((x - mean)@axes/scale, t) for x, t in held_out]


def wrong_labels(y, seed, share=.1):
    "Labels of which a share names another class, and which ones."
    g = torch.Generator().manual_seed(seed)
    wrong = torch.zeros(len(y), dtype=torch.bool)
    wrong[torch.randperm(len(y), generator=g)[:round(share*len(y))]] = True
    n = int(y.max()) + 1
    return torch.where(wrong, (y + torch.randint(1, n, y.shape, generator=g)) % n, y), wrong


def head(n_in, n_out, large, dropout):
    widths = [n_in, 256, 256, n_out] if large else [n_in, n_out]
    layers = [m for a, b in zip(widths, widths[1:]) for m in (nn.Dropout(dropout), nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def picked(y, per_class):
    "Indices of some pictures of each class, or of all."
    if not per_class: return torch.arange(len(y))
    return torch.cat([(y == c).nonzero()[:, 0][torch.randperm(int((y == c).sum()))[:per_class]] for c in y.unique()])


def capacity_run(data, seed, large, per_class=None, augment=False, dropout=0., decay=0., without=False, steps=360):
    x, y, held_out = data
    torch.manual_seed(seed)
    pick = picked(y, per_class)
    x, true = x[:, pick], y[pick]
    given, wrong = wrong_labels(true, seed)
    learned = (~wrong).nonzero()[:, 0] if without else torch.arange(len(true))
    model = head(x.shape[-1], int(y.max()) + 1, large, dropout)
    batches = math.ceil(len(learned)/64)
    rate, epochs = 2e-3 if large else 1e-2, math.ceil(steps/batches)
    opt = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, rate, total_steps=epochs*batches)
    for epoch in range(epochs):
        seen = x[1 + (epoch + seed) % PASSES] if augment else x[0]
        for i in learned[torch.randperm(len(learned))].split(64):
            opt.zero_grad()
            F.cross_entropy(model(seen[i]), given[i]).backward()
            opt.step()
            schedule.step()
    model.eval()
    with torch.no_grad(): train, *others = model(x[0]), *[model(hx) for hx, _ in held_out]
    wrongs = [int((out.argmax(1) != hy).sum()) for out, (_, hy) in zip(others, held_out)]
    vy = held_out[0][1]
    row = dict(loss=F.cross_entropy(train, given).item(), memorised=(train.argmax(1) == given)[wrong].float().mean().item(),
               wrong=wrongs[0], total=len(vy), error=wrongs[0]/len(vy), valid_loss=F.cross_entropy(others[0], vy).item())
    return row if len(held_out) == 1 else dict(row, test_error=wrongs[1]/len(held_out[1][1]))


CAPACITY_ARMS = {
    'small, few': dict(large=False, per_class=10), 'large, few': dict(large=True, per_class=10),
    'small, many': dict(large=False), 'large, many': dict(large=True),
    'large, many: augmentation': dict(large=True, augment=True),
    'large, many: dropout': dict(large=True, dropout=.5),
    'large, many: weight decay': dict(large=True, decay=10.),
    'large, many: all three': dict(large=True, augment=True, dropout=.5, decay=10.),
    'small, many: without the wrong labels': dict(large=False, without=True),
    'large, many: without the wrong labels': dict(large=True, without=True)}
PHOTO_ARMS = {a: CAPACITY_ARMS[a] for a in ('small, many', 'large, many', 'large, many: dropout', 'large, many: weight decay',
                                                'small, many: without the wrong labels', 'large, many: without the wrong labels')}
RUNGS = {'lite0, 96 px': (lite0, 96), 'lite0, 64 px': (lite0, 64), 'lite0, 128 px': (lite0, 128), 'lite0, 64 then 96 px': (lite0, (64, 96)),
         'lite1, 96 px': (lite1, 96), 'lite2, 96 px': (lite2, 96)}
BUDGETS = {8: list(RUNGS), 24: ['lite0, 96 px', 'lite2, 96 px']}  # seconds -> rungs


def capacity_arms():
    data = features(PASSES, paper_pets(), paper_pets_test(paper_pets()), passes=PASSES)
    return {arm: lambda seed, how=how: capacity_run(data, seed, **how) for arm, how in CAPACITY_ARMS.items()}


def photo_arms(folder):
    data = features('photos', folder/'pets_dev'/'images')
    return {arm: lambda seed, how=how: capacity_run(data, seed, steps=720, **how) for arm, how in PHOTO_ARMS.items()}


def grow_arms():
    from ch5clf.growth import grow
    def run(seed, rung, seconds):
        row = grow(paper_pets(seed=100 + seed), [rung], seconds=seconds, seed=seed, clock=time.process_time).iloc[0]
        return dict(budget=seconds, **{k: row[k].item() for k in ('seconds', 'pictures', 'valid_loss', 'wrong', 'total', 'error')})
    return {f'{name}, {seconds} s': lambda seed, rung=RUNGS[name], seconds=seconds: run(seed, rung, seconds)
            for seconds, names in BUDGETS.items() for name in names}


def rows_of(out): return json.loads(out.read_text(encoding='utf-8'))['rows'] if out.exists() else []


def make(out, arms, seeds, about, until, now=None):
    "Run what is not recorded yet; `now`: only these arms."
    for seed in range(1, seeds + 1):
        for arm, run in arms.items():
            if now and arm not in now: continue
            if any((r['arm'], r['seed']) == (arm, seed) for r in rows_of(out)): continue
            if time.monotonic() > until: return print(f'{out.name}: time is over, {len(rows_of(out))} runs; call again to go on')
            row = dict(arm=arm, seed=seed, **run(seed))
            others = [r for r in rows_of(out) if (r['arm'], r['seed']) != (arm, seed)]
            record(out, sorted([*others, row], key=lambda r: (list(arms).index(r['arm']), r['seed'])), about)
            print(row, flush=True)
    print(f'{out.name}: complete, {len(rows_of(out))} runs')


def main():
    torch.set_num_threads(1)  # tiny matrices: threads cost more than they give, and a busy machine disturbs one thread least
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('what', nargs='*', help='capacity, grow, photos; the first two by default')
    p.add_argument('--minutes', type=float, default=math.inf)
    p.add_argument('--photos', type=Path, help='folder that holds pets_dev/images/')
    args = p.parse_args()
    what = set(args.what or ('capacity', 'grow'))
    if unknown := what - {'capacity', 'grow', 'photos'}: p.error(f'{", ".join(unknown)}: expected capacity, grow or photos')
    if 'photos' in what and not args.photos: p.error('photos: give their folder, --photos FOLDER')
    until = time.monotonic() + 60*args.minutes
    if 'capacity' in what: make(RUNS/'deeper.json', capacity_arms(), SEEDS, CAPACITY, until)
    if 'photos' in what: make(RUNS/'deeper_photos.json', photo_arms(args.photos), 10, PHOTOS, until)
    if 'grow' not in what: return
    for seconds, names in BUDGETS.items():  # the short runs of all seeds first
        make(RUNS/'deeper_grow.json', grow_arms(), GROW_SEEDS, GROW, until, [f'{name}, {seconds} s' for name in names])


if __name__ == '__main__': main()
