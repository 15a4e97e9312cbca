"Nearly equal pictures: counted on real photos where they are there, and on what must not be confused."
import io
from pathlib import Path

import numpy as np
import pytest
from ch5clf.twins import sketch, twin_groups, twin_pairs
from PIL import Image, ImageEnhance, ImageOps

PHOTOS = Path(__file__).parents[2]/'shared'/'photos'


def saved(im, quality):
    b = io.BytesIO()
    im.save(b, 'JPEG', quality=quality)
    return Image.open(b).convert('RGB')


def cropped(im, share):
    (w, h), x, y = im.size, round(im.width*share), round(im.height*share)
    return im.crop((x, y, w - x, h - y))


COPIES = { # kind: (how it is made, share that must be found)
    'quality 60': (lambda im: saved(im, 60), .99),
    'half': (lambda im: saved(im.resize((im.width//2, im.height//2)), 85), .99),
    'mirrored': (lambda im: saved(ImageOps.mirror(im), 87), .99),
    'brighter': (lambda im: saved(ImageEnhance.Brightness(im).enhance(1.25), 87), .97),
    'cropped': (lambda im: saved(cropped(im, .05), 87), .9),
    'messenger': (lambda im: saved(ImageOps.mirror(ImageEnhance.Brightness(cropped(im, .03).resize((im.width//2, im.height//2))).enhance(.85)), 60), .9)}


@pytest.mark.slow
@pytest.mark.parametrize('name', ['pets_dev', 'clothing_dev'])
def test_copies_of_real_photos_are_found_and_others_are_not(name):
    files = sorted((PHOTOS/name/'images').glob('*.jpg'))
    if not files: pytest.skip(f'{name} is not here')
    originals = [sketch(np.asarray(Image.open(f).convert('RGB'))) for f in files]
    wrong = twin_pairs(originals)
    assert len(wrong) <= 2, [(files[i].name, files[j].name) for i, j, *_ in wrong]
    for kind, (make, share) in COPIES.items():
        of = range(0, len(files), 5)
        made = [sketch(np.asarray(make(Image.open(files[i]).convert('RGB')))) for i in of]
        found = {(i, j - len(files)) for i, j, *_ in twin_pairs(originals + made) if i < len(files) <= j}
        assert np.mean([(i, k) in found for k, i in enumerate(of)]) >= share, kind
        assert sum(of[k] != i for i, k in found) <= 1, kind  # a dark, small shirt may be like another shirt


def test_any_size_and_shape_has_a_sketch():
    rng = np.random.default_rng(0)
    shapes = [(1, 1), (1, 500), (3000, 2), (64, 64), (65, 63)]
    sketches = [sketch(rng.integers(0, 256, (*s, 3), dtype=np.uint8)) for s in shapes]
    assert all(g.shape == (64, 64) and g.dtype == np.uint8 for g, _ in sketches)
    assert len(twin_groups(sketches)) == 5 and len(twin_groups([])) == 0


def test_many_copies_of_one_picture_are_one_group():
    rng = np.random.default_rng(0)
    base = np.kron(rng.integers(0, 256, (8, 8, 3)), np.ones((12, 12, 1)))
    pictures = [np.clip(base + rng.normal(0, 4, base.shape), 0, 255).astype(np.uint8) for _ in range(40)]
    assert len(set(twin_groups([sketch(p) for p in pictures]))) == 1
