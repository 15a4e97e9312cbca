"""Record the comparisons of the fine-tuning chapter: `python bench/finetune_runs.py SET SEEDS [--photos DIR] [--parts start,slice,rates,mystery,suspects,epochs,features] [--seconds 200] [--jobs 2]`.

SET is paper-pets, pets or clothing; SEEDS such as 1-20. Writes ch5clf/runs/finetune.json, a row for each arm and seed. A row that is there
already is not run again, so the script can be stopped and called again; with --seconds it begins no new seeds after that time.
DIR holds pets_dev/ and clothing_dev/ (real photos, not in this repository).

Every seed draws its own training pictures (a few of each class), test pictures (others, never used for any choice), head and order of batches;
all arms of a seed share them, and most go on from the same head, trained on frozen features.
"""
import argparse, copy, json, multiprocessing, os, time, warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from fastai.vision.all import Callback, CancelValidException, L, error_rate, set_seed, vision_learner

from ch5clf.data import pet_dls
from ch5clf.finetune import feature_fit, frozen_batchnorm
from ch5clf.lesson import record
from ch5clf.pretrained import lite0
from ch5clf.sample import paper_pets

OUT = Path(__file__).resolve().parents[1]/'ch5clf'/'runs'/'finetune.json'
ABOUT = ('lite0, paper pets at 64 px and real photos at 96, batches of 16, float32; a few training pictures of each class (paper pets 8, Oxford pets 4, clothing 8), error on 12 (Oxford pets 6) others of each class; '
         'every seed draws pictures, head and batches anew and its arms share them. Arms of sections 4, 5 and 8 go on from a head trained for 20 epochs on frozen features at 3e-3; '
         '3 epochs of one-cycle at slice(1e-5, 1e-3) with frozen batch-norm, unless the arm says otherwise. Seconds are those of one processor.')
SETS = {'paper-pets': ('paper pets', 8, 12, 64), 'pets': ('Oxford pets', 4, 6, 96), 'clothing': ('clothing', 8, 12, 96)}
SLICE = slice(1e-5, 1e-3)
LAST = dict(start='its body, a new head', slice='all layers, a slice of rates', rates='random weights', mystery='rate 0', suspects='twice the epochs', epochs='trained again', features='frozen stage, batch-norm frozen')  # each part's last arm: there, the part is done


def few(path, per_class, test_per_class, seed, size, bs=16):
    "Loaders with a few training pictures of each class, and test batches of others."
    dls = pet_dls(path, size=size, presize=round(1.25*size), bs=bs, seed=seed)
    ds, rng = dls.train_ds, np.random.default_rng(seed)
    labels = np.array([int(t) for t in ds.tls[1]])
    order = [rng.permutation(np.flatnonzero(labels == c)) for c in range(len(dls.vocab))]
    files = list(ds.items)
    test = [files[i] for o in order for i in o[per_class:per_class + test_per_class]]
    for tl in ds.tls: tl.items = L(tl.items)[[int(i) for o in order for i in o[:per_class]]]
    dls.loaders[0] = dls.train.new(ds)
    return dls, [tuple(t.as_subclass(torch.Tensor) for t in b) for b in dls.test_dl(test, with_labels=True, bs=64)]


def learner(dls, pretrained=True):
    learn = vision_learner(dls, lite0, pretrained=pretrained, metrics=error_rate)
    learn.remove_cb(learn.progress)
    learn.logger = lambda *_: None
    return learn


def wrong(model, batches):
    model.eval()
    with torch.no_grad(): return sum(int((model(x).argmax(1) != y).sum()) for x, y in batches)


class TestErrors(Callback):
    "Wrong test pictures after each epoch."
    def __init__(self, batches): self.batches, self.wrong = batches, []
    def after_epoch(self): self.wrong.append(wrong(self.learn.model, self.batches))


class NoValidation(Callback):
    "Where no epoch is chosen, validation would only cost time."
    def before_validate(self): raise CancelValidException


def look(learn, epochs):
    "What training at rate 0 does: batch-norm sees the pictures in train mode, and no weight moves."
    learn.model.train()
    with torch.no_grad():
        for _ in range(epochs):
            for x, _ in learn.dls.train: learn.model(x)


def early_stop(valid_losses, patience=1):
    "The epoch (from 1) after which fastai's EarlyStoppingCallback would have stopped."
    best, wait = np.inf, 0
    for epoch, loss in enumerate(valid_losses, 1):
        best, wait = (loss, 0) if loss < best else (best, wait + 1)
        if wait >= patience: return epoch
    return len(valid_losses)


def one_seed(path, per_class, test_per_class, size, seed, parts):
    set_seed(seed)
    dls, test = few(path, per_class, test_per_class, seed, size)
    total = sum(len(y) for _, y in test)
    learn = learner(dls)
    raw = copy.deepcopy(learn.model.state_dict())

    def row(arm, section, n, **more): return dict(arm=arm, section=section, seed=seed, error=n/total, wrong=n, total=total, **more)

    feature_fit(learn, 20, 3e-3)
    good = copy.deepcopy(learn.model.state_dict())
    yield row('head only', 4, wrong(learn.model, test))

    def arm(name, section, epochs=3, lr=SLICE, frozen=True, state=good, learn=learn, follow=False, **more):
        set_seed(seed)
        learn.model.load_state_dict(state)
        learn.opt = None
        learn.unfreeze()
        errors = TestErrors(test)
        cbs = [errors if follow else NoValidation(), *([frozen_batchnorm()] if frozen else [])]
        if lr == 0: look(learn, epochs)
        else: learn.fit_one_cycle(epochs, lr, cbs=cbs)
        if not follow: return row(name, section, wrong(learn.model, test))
        train, valid, error = zip(*([float(v) for v in r] for r in learn.recorder.values))
        return row(name, section, errors.wrong[-1], train_losses=train, valid_losses=valid, valid_errors=error, test_wrong=errors.wrong, **more)

    if 'start' in parts:
        yield arm('all at once', 1, lr=1e-2, state=raw)
        set_seed(seed)
        learn.model[1].load_state_dict({k[2:]: v for k, v in raw.items() if k.startswith('1.')})
        learn.opt = None
        feature_fit(learn, 20, 3e-3)
        yield row('its body, a new head', 1, wrong(learn.model, test))
    if 'slice' in parts: yield arm('all layers, a slice of rates', 4)
    if 'rates' in parts:
        yield arm('all layers, one rate', 4, lr=1e-3)
        yield arm('all layers, one low rate', 4, lr=1e-4)
        set_seed(seed)
        fresh = learner(dls, pretrained=False)
        yield arm('random weights', 4, lr=3e-3, frozen=False, state=copy.deepcopy(fresh.model.state_dict()), learn=fresh)
    if 'mystery' in parts:
        yield arm('unfrozen', 5, frozen=False)
        yield arm('rate 0', 5, lr=0, frozen=False)
    if 'suspects' in parts:
        yield arm('a tenth of the rates', 5, lr=slice(1e-6, 1e-4), frozen=False)
        yield arm('twice the epochs', 5, epochs=6, frozen=False)
    if 'epochs' in parts:
        full = arm('the whole cycle', 8, epochs=6, follow=True)
        yield full
        stop = early_stop(full['valid_losses'])
        yield row('stopped early', 8, full['test_wrong'][stop-1], epochs=stop)
        best = int(np.argmin(full['valid_errors'])) + 1
        again = arm('trained again', 8, epochs=best) if best < 6 else {k: full[k] for k in ('section', 'seed', 'error', 'wrong', 'total')} | dict(arm='trained again')
        again['epochs'] = best
        yield again
    if 'features' in parts:
        for views in (1, 4):
            set_seed(seed)
            learn.model.load_state_dict(raw)
            learn.opt = None
            start = time.process_time()
            feature_fit(learn, 20, 3e-3, views=views)
            seconds = time.process_time() - start
            yield row(f'features once, {views} view{"s"[:views-1]}', 9, wrong(learn.model, test), seconds=seconds)
        for name, cbs, epochs in (('frozen stage', [], 5), ('frozen stage, batch-norm frozen', [frozen_batchnorm()], 5)):
            set_seed(seed)
            learn.model.load_state_dict(raw)
            learn.opt = None
            learn.freeze()
            start = time.process_time()
            learn.fit_one_cycle(epochs, 3e-3, cbs=[NoValidation(), *cbs])
            seconds = time.process_time() - start
            yield row(name, 9, wrong(learn.model, test), seconds=seconds)


def begin(threads):
    torch.set_num_threads(threads)
    warnings.filterwarnings('ignore')


def seed_rows(job): return list(one_seed(*job))


def rows(): return json.loads(OUT.read_text(encoding='utf-8'))['rows'] if OUT.exists() else []


def done(label, seed, part): return any((r['set'], r['seed'], r['arm']) == (label, seed, LAST[part]) for r in rows())


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument('set', choices=SETS)
    ask.add_argument('seeds', help='such as 1-20')
    ask.add_argument('--photos', type=Path)
    ask.add_argument('--parts', default=','.join(LAST))
    ask.add_argument('--seconds', type=float, default=float('inf'))
    ask.add_argument('--jobs', type=int, default=2, help='seeds at a time, each in a process of its own')
    a = ask.parse_args()
    warnings.filterwarnings('ignore')
    label, *sizes = SETS[a.set]
    if a.set != 'paper-pets' and not a.photos: ask.error('real photos: give --photos DIR')
    path = paper_pets() if a.set == 'paper-pets' else a.photos/f'{a.set}_dev'/'images'
    first, last = (int(v) for v in f'{a.seeds}-{a.seeds}'.split('-')[:2])
    jobs = {seed: todo for seed in range(first, last + 1) if (todo := [v for v in a.parts.split(',') if not done(label, seed, v)])}
    begun, order = time.monotonic(), [v[0] for v in SETS.values()]
    with ProcessPoolExecutor(a.jobs, multiprocessing.get_context('spawn'), begin, [max(1, os.cpu_count()//a.jobs)]) as pool:
        waiting = list(jobs.items())
        while waiting and time.monotonic() - begun < a.seconds:
            group, waiting = waiting[:a.jobs], waiting[a.jobs:]
            for new in pool.map(seed_rows, [(path, *sizes, *job) for job in group]):
                new = [dict(set=label, **r) for r in new]
                kept = [r for r in rows() if not any((r['set'], r['arm'], r['seed']) == (n['set'], n['arm'], n['seed']) for n in new)]
                record(OUT, sorted([*kept, *new], key=lambda r: (order.index(r['set']), r['section'], r['seed'])), ABOUT)
                print(label, new[0]['seed'], f'{time.monotonic() - begun:.0f} s;', ', '.join(f'{n["arm"]} {n["wrong"]}' for n in new), f'of {new[0]["total"]}', flush=True)


if __name__ == '__main__': main()
