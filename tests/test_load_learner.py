"A learner from `load_learner` has no pictures; whoever needs some says so."
import pytest
from ch5clf.epochs import epoch_story
from ch5clf.features import feature_fit, frozen_features
from ch5clf.loaders import pet_dls
from ch5clf.suspects import suspicious_labels
from fastai.vision.all import Learner, load_learner
from PIL import Image
from torch import nn


def test_what_a_loaded_learner_lacks_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv('CH5CLF_CACHE', str(tmp_path/'cache'))
    (tmp_path/'p').mkdir()
    for i in range(8): Image.new('RGB', (40, 40), (30*i, 90, 90)).save(tmp_path/'p'/f'{"ab"[i % 2]}_{i}.png')
    body = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    learn = Learner(pet_dls(tmp_path/'p', size=16, presize=20, bs=2), nn.Sequential(body, nn.Sequential(nn.Linear(3, 2))), path=tmp_path)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    learn.export(tmp_path/'export.pkl')
    loaded = load_learner(tmp_path/'export.pkl')
    for ask in (lambda: suspicious_labels(loaded), lambda: suspicious_labels(loaded, 1, out_of_fold=False),
                lambda: feature_fit(loaded, 1), lambda: frozen_features(loaded, loaded.dls.valid)):
        with pytest.raises(ValueError, match=r'load_learner gives a model without its data.*learn.dls = pet_dls'): ask()
    with pytest.raises(ValueError, match='before learn.export'): epoch_story(loaded)
    loaded.dls = pet_dls(tmp_path/'p', size=16, presize=20, bs=2)  # the remedy
    assert len(suspicious_labels(loaded)) == 6
