"""fastai's pipeline beside the one-interpolation loader: pictures a second, sharpness, aliasing, memory.

    python bench/pipeline.py [speed] [quality] [memory]     writes bench/results/pipeline.json and pipeline.md; all three by default

Speed: 256 JPEGs of 640 x 480 px cut from the photographs that scikit-image and scikit-learn ship; fastai and ours take turns in one
process, medians over rounds. Quality: five of those photographs x 12 draws of the augmentation, each pipeline against a 4 x 4
supersampled warp of the original at its own geometry. Memory: a process of its own for each size of set.
"""
import json, math, os, subprocess, sys, tempfile
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ch5clf.data import pet_dls
from ch5clf.pictures import open_picture, presized
from ch5clf.places import versions
from ch5clf.presize import draw_homographies, warp
from fastai.vision.all import TensorImage, set_seed
from fastai.vision.augment import apply_perspective, find_coeffs, flip_mat, rotate_mat, zoom_mat

RESULTS = Path(__file__).resolve().parent/'results'
SIZES = [(160, 128), (256, 224), (460, 224)]
ROUNDS = 5


def photographs():
    import skimage, sklearn.datasets
    a, b = Path(skimage.__file__).parent/'data', Path(sklearn.datasets.__file__).parent/'images'
    found = [a/n for n in ('astronaut.png', 'motorcycle_left.png', 'hubble_deep_field.jpg', 'retina.jpg', 'ihc.png')] + [b/'china.jpg', b/'flower.jpg']
    return [open_picture(f) for f in found]


def make_set(folder, n=256):
    "Crops of real photographs, named like a picture set of four classes."
    rng, photos = np.random.default_rng(0), photographs()
    for i in range(n):
        im = photos[i%len(photos)]
        w = rng.uniform(.7, 1)*min(im.width, im.height*4/3)
        x, y = rng.uniform(0, im.width - w), rng.uniform(0, im.height - w*3/4)
        im.resize((640, 480), Image.LANCZOS, box=(x, y, x + w, y + w*3/4)).save(folder/f'class_{"abcd"[i%4]}_{i}.jpg', quality=90)


def seconds(f):
    start = perf_counter()
    f()
    return perf_counter() - start


def speed(folder):
    make_set(folder)
    files, rows = sorted(folder.glob('*.jpg')), []
    def through(loader):
        for _ in loader: pass
    def threaded(f):
        with ThreadPoolExecutor(os.cpu_count()) as pool: list(pool.map(f, files))
    for presize, size in SIZES:
        took = {k: [] for k in ('decode', 'decode and presize', 'fastai', 'ours, first epoch', 'ours, later epochs')}
        args = dict(size=size, presize=presize, bs=32, drop_last=False)
        theirs = pet_dls(folder, cached=False, **args)
        for r in range(ROUNDS):
            os.environ['CH5CLF_CACHE'] = str(folder/f'cache-{presize}-{r}')
            took['decode'].append(seconds(lambda: threaded(open_picture)))
            took['decode and presize'].append(seconds(lambda: threaded(lambda f: presized(f, presize))))
            n = len(theirs.train_ds)
            took['fastai'].append(seconds(lambda: through(theirs.train))*len(files)/n)
            def first():
                first.dls = pet_dls(folder, cached=True, **args)
                through(first.dls.train)
            took['ours, first epoch'].append(seconds(first))
            took['ours, later epochs'].append(seconds(lambda: through(first.dls.train))*len(files)/n)
        rate = {k: round(len(files)/median(v), 1) for k, v in took.items()}
        ratios = [a/b for a, b in zip(took['fastai'], took['ours, later epochs'])]
        rows.append(dict(presize=presize, size=size, pictures_per_second=rate, rounds={k: [round(t, 3) for t in v] for k, v in took.items()},
                         faster=round(rate['ours, later epochs']/rate['fastai'], 1), faster_range=[round(min(ratios), 1), round(max(ratios), 1)],
                         first_epoch_over_decoding=round(rate['decode']/rate['ours, first epoch'], 2), first_epoch_over_presizing=round(rate['decode and presize']/rate['ours, first epoch'], 2)))
        print(rows[-1], flush=True)
    return rows


class Coefficients:
    def __init__(self, c): self.c = c
    def __call__(self, x, invert=False): return apply_perspective(x, self.c)


def fastai_draw():
    x = torch.zeros(1)
    affine = torch.as_tensor(flip_mat(x, p=.5) @ rotate_mat(x, 10, p=.75) @ zoom_mat(x, 1, 1.1, p=.75))
    dx, dy = (torch.empty(1).uniform_(-.2, .2)*torch.empty(1).bernoulli_(.75) for _ in range(2))
    corners = torch.tensor([[[-1., -1], [-1, 1], [1, -1], [1, 1]]])
    coeffs = torch.as_tensor(find_coeffs(corners, corners - corners.prod(-1, keepdim=True)*torch.stack([dy, dx], -1)[:, None]))
    side = math.sqrt(torch.empty(1).uniform_(.75, 1).item())
    return affine, coeffs, side, torch.rand(2).tolist()


def sample(source, x, y, k=4):
    "Mean of k x k bilinear samples of a picture (h, w, 3) for each pixel; x and y from its edge, in its pixels."
    h, w = source.shape[:2]
    grid = torch.stack([x*(2/w) - 1, y*(2/h) - 1], -1)[None].float()
    out = F.grid_sample(torch.from_numpy(np.array(source)).permute(2, 0, 1)[None].float(), grid, padding_mode='reflection', align_corners=False)
    return F.avg_pool2d(out, k)[0]


def psnr(a, b): return 10*math.log10(255**2/((a - b)**2).mean().item())


def two_steps(im, draw, presize, size):
    "fastai's way, by its own functions, and the reference at its geometry."
    affine, coeffs, side, place = draw
    square = min(im.size)
    left, top = (im.width - square)//2, (im.height - square)//2
    first = im.crop((left, top, left + square, top + square)).resize((presize, presize), Image.BILINEAR)
    x = TensorImage(torch.from_numpy(np.array(first)).permute(2, 0, 1)[None].float()/255)
    y = x.affine_coord(mat=affine[:, :2], coord_tfm=Coefficients(coeffs), mode='bilinear', pad_mode='reflection', align_corners=True)
    cut = round(side*presize)
    at = [int(p*(presize - cut)) for p in place]
    z = y[..., at[1]:at[1] + cut, at[0]:at[0] + cut].affine_coord(sz=(size, size), mode='bilinear')
    j = (torch.arange(size*4) + .5)/4 - .5
    u, v = ((a + j/(size - 1)*(cut - 1))*2/(presize - 1) - 1 for a in at)
    warped = torch.cat([coeffs[0, :, 0], torch.ones(1)]).view(3, 3) @ affine[0]
    p = warped @ torch.stack([u.expand(len(v), -1), v[:, None].expand(-1, len(u)), torch.ones(len(v), len(u))]).flatten(1)
    X, Y = (((q.view(len(v), -1) + 1)/2*(presize - 1) + .5)/presize*square + o for q, o in zip(p[:2]/p[2], (left, top)))
    return (torch.as_tensor(z[0])*255).round().clamp(0, 255).as_subclass(torch.Tensor), sample(np.asarray(im), X, Y)


def one_step(im, homography, presize, size):
    source = np.asarray(im)
    h, w = source.shape[:2]
    l = (torch.arange(size*4) + .5)*2/(size*4) - 1
    p = torch.from_numpy(homography).float() @ torch.stack([l.expand(len(l), -1), l[:, None].expand(-1, len(l)), torch.ones(len(l), len(l))]).flatten(1)
    side = min(h, w)
    X, Y = ((q.view(len(l), -1) + 1)*side/2 + (length - side)/2 for q, length in zip(p[:2]/p[2], (w, h)))
    return torch.from_numpy(warp(presized(im, presize), homography, (.5, .5), size)).permute(2, 0, 1).float(), sample(source, X, Y)


def resize_first(im, homography, presize, size):
    "The way that presizing replaces: to the final size at once, then turn and zoom."
    _, reference = one_step(im, homography, presize, size)
    h = min(im.size)
    square = im.crop(((im.width - h)//2, (im.height - h)//2, (im.width - h)//2 + h, (im.height - h)//2 + h)).resize((size, size), Image.BILINEAR)
    return torch.from_numpy(warp(np.asarray(square), homography, (.5, .5), size)).permute(2, 0, 1).float(), reference


def quality():
    rows, photos = [], photographs()[:5]
    for presize, size in SIZES:
        set_seed(1)
        H = draw_homographies(12*len(photos))
        draws = [fastai_draw() for _ in H]
        ours = [psnr(*one_step(photos[i%5], h, presize, size)) for i, h in enumerate(H)]
        theirs = [psnr(*two_steps(photos[i%5], d, presize, size)) for i, d in enumerate(draws)]
        first = [psnr(*resize_first(photos[i%5], h, presize, size)) for i, h in enumerate(H)]
        row = dict(presize=presize, size=size, ours=np.mean(ours), fastai=np.mean(theirs), resize_first=np.mean(first))
        row['gain'] = row['ours'] - row['fastai']
        rows.append({k: round(float(v), 2) if k not in ('presize', 'size') else v for k, v in row.items()})
        print(rows[-1], flush=True)
    return rows


CHILD = '''
import os, sys
from pathlib import Path
from ch5clf.data import pet_dls
def private(): return next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('RssAnon'))/1024
dls = pet_dls(Path(sys.argv[1]), bs=32)
for _ in zip(range(4), dls.train): pass
start = highest = private()
for e in range(2):
    for _ in dls.train: highest = max(highest, private())
print(len(dls.train_ds), start, highest)
'''


def memory(folder):
    "Private memory while loading: JPEGs made different by what follows their end, which no decoder reads."
    rows, source = [], folder/'few'
    source.mkdir()
    make_set(source, 64)
    kinds = [f.read_bytes() for f in sorted(source.glob('*.jpg'))]
    for n in (500, 8000):
        many = folder/f'many-{n}'
        many.mkdir()
        for i in range(n): (many/f'class_{"abcd"[i%4]}_{i}.jpg').write_bytes(kinds[i%64] + i.to_bytes(4, 'little'))
        r = subprocess.run([sys.executable, '-c', CHILD, str(many)], capture_output=True, text=True, env={**os.environ, 'CH5CLF_CACHE': str(folder/'memory')})
        if r.returncode: raise SystemExit(r.stderr)
        _, start, highest = map(float, r.stdout.split('\n')[-2].split())
        store, = [f for f in (folder/'memory'/'presized').glob('*.store') if f.stat().st_size > 60_000*n]
        rows.append(dict(pictures=n, store_mb=round(store.stat().st_size/1e6), private_mb_after_4_batches=round(start), highest_private_mb=round(highest)))
        print(rows[-1], flush=True)
        for f in (folder/'memory'/'presized').glob('*.store'): f.unlink()
    return rows


def table(head, rows): return '\n'.join(['| ' + ' | '.join(head) + ' |', '|' + ' --- |'*len(head), *('| ' + ' | '.join(map(str, r)) + ' |' for r in rows)])


def report(d):
    out = ['# Decode once, interpolate once: beside fastai\'s own pipeline', '', f'{d["made"]}. `python bench/pipeline.py`.', '']
    if 'speed' in d:
        kinds = list(d['speed'][0]['pictures_per_second'])
        out += ['## Pictures a second', f'256 JPEGs of 640 x 480, batches of 32, no worker processes; medians of {ROUNDS} interleaved rounds. Goals: 8 times fastai at 160 -> 128, 10 times at 460 -> 224; a first epoch within 1.5 times of decoding alone.', '',
                table(['presize -> size', *kinds, 'ours / fastai (range)', 'first epoch / decoding', 'first epoch / decoding and presizing'],
                      [[f'{r["presize"]} -> {r["size"]}', *r['pictures_per_second'].values(), f'**{r["faster"]}** ({r["faster_range"][0]} to {r["faster_range"][1]})', r['first_epoch_over_decoding'], r['first_epoch_over_presizing']] for r in d['speed']]), '']
    if 'quality' in d:
        out += ['## Sharpness: PSNR in dB against a 4 x 4 supersampled warp of the original', 'Five photographs x 12 draws of crop, flip, turn, zoom and warp. Goal: 2 dB above fastai\'s two steps.', '',
                table(['presize -> size', 'ours', 'fastai', 'gain', 'resize to the final size first'], [[f'{r["presize"]} -> {r["size"]}', r['ours'], r['fastai'], f'**{r["gain"]:+}**', r['resize_first']] for r in d['quality']]), '',
                'That no aliasing was bought as sharpness is asserted with a zone plate in nbs/workshop/14_presize.ipynb.', '']
    if 'memory' in d:
        out += ['## Private memory (RssAnon) while loading, MB', '', table(['pictures', 'store on disk', 'after 4 batches', 'highest in two epochs'], [list(r.values()) for r in d['memory']]), '']
    return '\n'.join(out)


def main():
    wanted, file = sys.argv[1:] or ['speed', 'quality', 'memory'], RESULTS/'pipeline.json'
    found = json.loads(file.read_text(encoding='utf-8')) if file.exists() else {}
    with tempfile.TemporaryDirectory() as tmp:
        for name in wanted:
            (folder := Path(tmp)/name).mkdir()
            found[name] = quality() if name == 'quality' else dict(speed=speed, memory=memory)[name](folder)
    v = versions()
    found['made'] = f'{date.today()}, {os.cpu_count()} cores, CPU, torch {v["torch"]}, fastai {v["fastai"]}, load average at the end {os.getloadavg()[0]:.1f}'
    file.write_text(json.dumps(found, indent=1) + '\n', encoding='utf-8')
    (RESULTS/'pipeline.md').write_text(report(found), encoding='utf-8')


if __name__ == '__main__': main()
