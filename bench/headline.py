"""How many of other people's photos are named wrongly after one short training: `python bench/headline.py --train DIR --test DIR`.

Each photo goes once through two networks that ImageNet has trained, as it is and mirrored; the networks stay as they are. What
each says of a photo (1,280 numbers) is all that a linear classifier, logistic regression, learns from; both are then averaged.

DIR holds photos named Breed_name_12.jpg, or a folder for each class. `--cv 5` judges on --train alone: each fifth is held back in
turn and named by a classifier that learnt on the others; `--splits 5` repeats that with five other divisions.
"""
import time

BEGUN = time.perf_counter()  # the imports belong to what a reader waits for

import argparse, contextlib, io, json, os, platform, sys, warnings  # noqa: E402, E401
from concurrent.futures import ThreadPoolExecutor  # noqa: E402
from datetime import date  # noqa: E402
from hashlib import sha256  # noqa: E402
from pathlib import Path  # noqa: E402

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.utils.fusion import fuse_conv_bn_eval  # noqa: E402

warnings.filterwarnings('ignore')  # of the libraries, while they are imported too
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ch5clf.data import labeller_for  # noqa: E402
from ch5clf.lesson import interval, versions  # noqa: E402
from ch5clf.photos import usable_images  # noqa: E402
from ch5clf.presize import open_picture  # noqa: E402
from ch5clf.pretrained import lite1, lite2, model_meta  # noqa: E402

BODIES, STEP = [(lite2, 288), (lite1, 256)], 32  # network and pixels of the short side; what both sides are multiples of
STRENGTH = 10  # of the logistic regression: scikit-learn's C, for features of length 1
JSON, TABLE = ROOT/'bench'/'results'/'headline.json', ROOT/'bench'/'results'/'headline.md'
CAUTION = 'ImageNet, whose pictures the networks have seen, contains many of the breeds of the Oxford pets: other classes are harder than this figure says.'


def photos(path):
    "Files and labels of a folder. `ValueError` where a photo cannot be used: a result that passes over some photos is none."
    with contextlib.redirect_stdout(io.StringIO()) as said: files = usable_images(path, decode=True)
    if said.getvalue(): raise ValueError(f'{path}: {" ".join(said.getvalue().split()).replace("are left out", "cannot be used")}. A result counts every photo')
    if not files: raise ValueError(f'{path}: no photos in this folder')
    return files, np.array([*map(labeller_for(path, files), files)])


def fold(model):
    "Each batch-norm in eval mode is a scale and a shift: put into the convolution before it, it costs nothing."
    for module in list(model.modules()):
        parts = list(module.named_children())
        for (conv_name, conv), (bn_name, bn) in zip(parts, parts[1:]):
            if isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d):
                setattr(module, conv_name, fuse_conv_bn_eval(conv, bn))
                setattr(module, bn_name, bn.act)  # timm's batch-norm layers carry the activation
    return model


def whole(picture, short_side):
    "The whole picture in its own shape, both sides multiples of `STEP` pixels and the long one at most twice the short one."
    scale = short_side/min(picture.shape[:2])
    sides = [min(2*short_side, max(short_side, round(n*scale/STEP)*STEP)) for n in picture.shape[1::-1]]
    return cv2.resize(picture, sides, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


@torch.inference_mode()
def look(body, file, short_side):
    "(1280,) features: mean over places, and over the picture and its mirror image."
    x = torch.from_numpy(whole(np.asarray(open_picture(file)), short_side)).permute(2, 0, 1)[None].float()/127.5 - 1
    x = torch.cat([x, x.flip(3)]).contiguous(memory_format=torch.channels_last)  # as a CPU likes it
    return body.forward_features(x).mean((0, 2, 3)).numpy()


def features(files):
    "An (n, 1280) array for each network. A thread for each core, and one core for each picture: quicker than all cores on one picture."
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    bodies = [(fold(arch().eval()).to(memory_format=torch.channels_last), short_side) for arch, short_side in BODIES]
    with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return [np.stack([*pool.map(lambda f: look(body, f, short_side), files)]) for body, short_side in bodies]


@torch.inference_mode()
def check(xs, files):
    "`RuntimeError` where a second way from photo to features gives others: the network as it is, its own normalisation, a plain batch of one."
    for (arch, short_side), x in zip(BODIES, xs):
        mean, std = (torch.tensor(v)[None, :, None, None] for v in model_meta[arch]['stats'])
        body = arch().eval()
        for file, ours in zip(files, x):
            picture = torch.from_numpy(whole(np.asarray(open_picture(file)), short_side)).permute(2, 0, 1)[None].contiguous()/255
            theirs = sum(body.forward_features((p - mean)/std).mean((0, 2, 3)) for p in (picture, picture.flip(3)))/2
            if not np.allclose(ours, theirs.numpy(), rtol=1e-3, atol=1e-3*float(theirs.std())): raise RuntimeError(f'{file}: two ways from photo to features differ; a fault of ours, and no figure is given')


def learn(xs, y):
    "A logistic regression for each network's features, scaled to length 1. Nothing is random."
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import normalize
    return [LogisticRegression(C=STRENGTH, max_iter=500).fit(normalize(x), y) for x in xs]


def wrong_of(fitted, xs, y):
    "How many are named wrongly by the sum of the networks' log-probabilities."
    from sklearn.preprocessing import normalize
    scores = sum(f.predict_log_proba(normalize(x)) for f, x in zip(fitted, xs))
    return int((fitted[0].classes_[scores.argmax(1)] != y).sum())


def cross_validated(xs, y, parts, seed):
    "How many photos are named wrongly by classifiers that did not learn on them."
    from sklearn.model_selection import StratifiedKFold
    return sum(wrong_of(learn([x[i] for x in xs], y[i]), [x[held] for x in xs], y[held])
               for i, held in StratifiedKFold(parts, shuffle=True, random_state=seed).split(y, y))


def told(wrong, total):
    low, high = interval(wrong, total)
    return f'{wrong} of {total} wrong, {wrong/total:.1%} (95 %: {low:.1%} to {high:.1%})'


def judge(a):
    "Train and judge as the arguments ask, print it; returns what `record` keeps."
    if a.test and a.test.resolve() == a.train.resolve(): raise ValueError(f'{a.test}: the same folder as --train; a test needs other photos (or give --cv 5 and no --test)')
    files, y = photos(a.train)
    classes, counts = np.unique(y, return_counts=True)
    if len(classes) < 2: raise ValueError(f'{a.train}: {len(files)} photos of a single class, {classes[0]}; at least two classes are needed')
    if a.cv and counts.min() < a.cv: raise ValueError(f'--cv {a.cv}: {classes[counts.argmin()]} has only {counts.min()} photos; at least one for each part is needed')
    if a.test:
        test_files, test_y = photos(a.test)
        if strange := sorted(set(test_y) - set(classes)): raise ValueError(f'{a.test}: {len(strange)} of its classes are not among the training photos ({", ".join(strange[:5])}); spell classes alike in both folders')
        known = {sha256(f.read_bytes()).digest() for f in files}
        if twins := sum(sha256(f.read_bytes()).digest() in known for f in test_files): print(f'Mind: {twins} of {len(test_files)} test photos lie in --train too, byte for byte.')
    xs = features(files)
    check(xs, files[:2])
    fitted = learn(xs, y)
    result = dict(train=len(files), classes=len(classes), seed=a.seed, train_seconds=round(time.perf_counter() - BEGUN, 1), train_cpu_seconds=round(time.process_time(), 1))
    print(f'train  {len(files)} photos, {len(classes)} classes: {result["train_seconds"]} s ({result["train_cpu_seconds"]} s of CPU, all cores together), imports and reading included; seed {a.seed} (draws the parts of --cv; nothing else is random)', flush=True)
    if a.cv:
        result |= dict(cv=a.cv, cv_wrong=[cross_validated(xs, y, a.cv, seed) for seed in range(a.seed, a.seed + a.splits)])
        for seed, wrong in enumerate(result['cv_wrong'], a.seed): print(f'cv     {told(wrong, len(y))}; {a.cv} parts, seed {seed}')
    if a.test:
        begun = time.perf_counter()
        wrong = wrong_of(fitted, features(test_files), test_y)
        result |= dict(test=len(test_y), test_wrong=wrong, test_seconds=round(time.perf_counter() - begun, 1))
        print(f'test   {told(wrong, len(test_y))}; {result["test_seconds"]} s more')
    print(CAUTION)
    return result


def record(r):
    "Keep what was measured, as JSON and as a table."
    load = f', load average {os.getloadavg()[0]:.1f}' if hasattr(os, 'getloadavg') else ''
    made = dict(date=f'{date.today()}', machine=f'{platform.system()} {platform.machine()}, {os.cpu_count()} cores{load}', versions=versions())
    JSON.write_text(json.dumps(dict(about=__doc__.strip(), made=made, result=r), indent=1) + '\n', encoding='utf-8')
    lines = ['# The headline: photos named wrongly after one short training', '', __doc__.strip(), '',
             f'{made["date"]}, {made["machine"]}, ' + ', '.join(f'{k} {v}' for k, v in made['versions'].items()) + '.', '',
             f'{r["train"]} training photos of {r["classes"]} classes, seed {r["seed"]}. Training took {r["train_seconds"]} s ({r["train_cpu_seconds"]} s of CPU, all cores together), imports and reading included. {CAUTION}', '']
    if 'cv' in r:
        shares = [w/r['train'] for w in r['cv_wrong']]
        lines += [f'Cross-validated, {r["cv"]} parts, {len(shares)} divisions: mean {np.mean(shares):.2%}, {min(shares):.2%} to {max(shares):.2%}. A division changes who is held back, not the photos: for other photos the 95 % are the measure.', '',
                  '| division (seed) | wrong |', '| --- | --- |', *(f'| {s} | {told(w, r["train"])} |' for s, w in enumerate(r['cv_wrong'], r['seed']))]
    if 'test' in r: lines += ['', f'Other photos: {told(r["test_wrong"], r["test"])}; naming them took {r["test_seconds"]} s.']
    TABLE.write_text('\n'.join(lines).rstrip() + '\n', encoding='utf-8')


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--train', type=Path, required=True)
    p.add_argument('--test', type=Path)
    p.add_argument('--cv', type=int, metavar='PARTS')
    p.add_argument('--splits', type=int, default=1, help='divisions for --cv: seeds SEED, SEED+1, ...')
    p.add_argument('--seed', type=int, default=1)
    p.add_argument('--record', action='store_true', help='write bench/results/headline.json and headline.md')
    a = p.parse_args()
    if not a.test and a.cv is None: p.error('give --test DIR, or --cv 5 to judge on the training photos alone')
    if a.cv is not None and a.cv < 2: p.error(f'--cv {a.cv}: at least 2 parts are needed')
    if a.splits < 1 or a.seed < 0: p.error('--splits must be at least 1, --seed at least 0')
    try: result = judge(a)
    except ModuleNotFoundError as e: p.exit(2, f'{e}; run: pip install "ch5clf[course]"\n')
    except (OSError, ValueError) as e: p.exit(2, f'{e}\n')
    if a.record: record(result)


if __name__ == '__main__': main()
