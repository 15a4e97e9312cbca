"""Record the data chapter's comparisons: `python bench/data_runs.py presize|cleaning [PHOTOS] [--minutes M]`.

Writes ch5clf/runs/presize.json and cleaning.json. With PHOTOS, a folder that holds pets_dev/ and clothing_dev/ (real photos, not in
this repository), presize runs on these; without, on paper pets. Seeds are taken in turn over the arms, so that arms stay paired; a run that is recorded is not repeated, and with --minutes
the script stops in good time and goes on at the next call.
"""
import argparse, json
from pathlib import Path
from time import monotonic

import pandas as pd
from ch5clf.data import pet_dls, suspicious_labels
from ch5clf.lesson import record
from ch5clf.photos import usable_images
from ch5clf.pretrained import lite0
from ch5clf.sample import paper_pets, paper_pets_test
from fastai.vision.all import CategoryBlock, DataBlock, FuncSplitter, ImageBlock, Resize, aug_transforms, error_rate, set_seed, vision_learner

RUNS = Path(__file__).resolve().parents[1]/'ch5clf'/'runs'
PRESIZE = 'vision_learner(dls, lite0, train_bn=False).fit_one_cycle(2, 3e-3), 128 px, batches of 32: error on validation pictures (paper pets: 144; Oxford pets 37 x 30 and clothing 10 x 80: a random fifth, another one for each seed). Arms: "one interpolation" is pet_dls(cached=True); "fastai presizing" cached=False, 160 -> 128; "resize first" squeezes to 128 and augments then.'
CLEANING = 'Paper pets with 46 of 576 training labels wrong, vision_learner(dls, lite0, train_bn=False).fit_one_cycle(3, 3e-3), 128 px, batches of 32: error on 240 test pictures with true labels. Arms: "as found"; "cleaned": the 92 training pictures that this model finds most suspicious (suspicious_labels) were looked at, wrong labels among them put right, and a model trained anew; "all right": no wrong label at all. precision: share of wrong labels among the first 46; found: wrong labels among the first 92.'


def train(dls, epochs=2):
    learn = vision_learner(dls, lite0, metrics=error_rate, train_bn=False)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, 3e-3)
    return learn


def resize_first(path):
    ours = pet_dls(path)
    valid = {str(f) for f in ours.valid_ds.items}
    block = DataBlock(blocks=(ImageBlock, CategoryBlock), get_items=lambda _: ours.train_ds.items + ours.valid_ds.items, get_y=ours.train_ds.tls[1].tfms.fs[0],
                      splitter=FuncSplitter(lambda f: str(f) in valid), item_tfms=Resize(128), batch_tfms=aug_transforms())
    return block.dataloaders(path, bs=32, num_workers=0)


def presize_run(arm, path, seed):
    set_seed(seed)
    dls = resize_first(path) if arm == 'resize first' else pet_dls(path, seed=seed, cached=arm == 'one interpolation')
    error = train(dls).recorder.values[-1][-1]
    return dict(error=error, wrong=round(error*len(dls.valid_ds)), total=len(dls.valid_ds))


def cleaning_run(arm, seed):
    dirty = paper_pets(wrong_labels=.08)
    rows = pd.read_csv(dirty/'labels.csv')
    truth, bad = dict(zip(rows.name, rows.true_breed)), set(rows.name[rows.label != rows.true_breed])
    set_seed(seed)
    learn, row = train(pet_dls(dirty, labels=truth if arm == 'all right' else None), 3), {}
    if arm == 'cleaned':
        ranked = [f.name for f in suspicious_labels(learn).file]
        k = len(bad)
        row = dict(precision=sum(n in bad for n in ranked[:k])/k, found=sum(n in bad for n in ranked[:2*k]))
        set_seed(seed)
        learn = train(pet_dls(dirty, labels={n: truth[n] for n in ranked[:2*k]}), 3)
    with learn.no_bar(), learn.no_logging(): logits, y = learn.get_preds(dl=learn.dls.test_dl(usable_images(paper_pets_test(dirty, per_breed=20)), with_labels=True))
    wrong = int((logits.argmax(1) != y).sum())
    return dict(error=wrong/len(y), wrong=wrong, total=len(y), **row)


def plan(name, photos):
    if name == 'cleaning': return [(arm, seed, lambda arm=arm, seed=seed: cleaning_run(arm, seed)) for seed in range(1, 11) for arm in ('as found', 'cleaned', 'all right')]
    sets = ({k: (photos/p/'images', 5) for k, p in (('Oxford pets', 'pets_dev'), ('clothing', 'clothing_dev'))} if photos else {'paper pets': (paper_pets(), 5)})
    return [(f'{k}: {arm}', seed, lambda arm=arm, path=path, seed=seed: presize_run(arm, path, seed)) for seed in range(1, 6) for k, (path, seeds) in sets.items() if seed <= seeds
            for arm in ('one interpolation', 'fastai presizing', 'resize first') if k == 'paper pets' or arm != 'resize first']


def rows_of(file): return json.loads(file.read_text(encoding='utf-8'))['rows'] if file.exists() else []


def main():
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument('name', choices=['presize', 'cleaning'])
    ask.add_argument('photos', type=Path, nargs='?')
    ask.add_argument('--minutes', type=float, default=1e9)
    a = ask.parse_args()
    out, end = RUNS/f'{a.name}.json', monotonic() + 60*a.minutes
    for arm, seed, run in plan(a.name, a.photos):
        if any(r['arm'] == arm and r['seed'] == seed for r in rows_of(out)): continue
        if monotonic() > end: return print('to be continued: run it again')
        row = dict(arm=arm, seed=seed, **run())
        record(out, [*rows_of(out), row], PRESIZE if a.name == 'presize' else CLEANING)
        print(row, flush=True)


if __name__ == '__main__': main()
