"Twelve drawn pictures of three breeds and fastai loaders of them, for the tests of models that are saved and carried elsewhere."
from ch5clf.presize import PresizeDL
from ch5clf.sample import BREEDS, draw
from fastai.vision.all import CategoryBlock, DataBlock, ImageBlock, RandomSplitter


def three_breeds(folder):
    "Files 0_0.jpg to 2_3.jpg, the class first."
    for c in range(3):
        for i in range(4): draw([BREEDS[c]], [i, c]).save(folder/f'{c}_{i}.jpg', quality=90)
    return sorted(folder.glob('*.jpg'))


def loaders(pictures, get_y, target=CategoryBlock, **kwargs):
    block = DataBlock((ImageBlock, target), get_y=get_y, splitter=RandomSplitter(seed=0))
    return block.dataloaders(pictures, bs=4, num_workers=0, **{**dict(dl_type=PresizeDL, size=64, presize=80), **kwargs})
