"""Loops of others, and the race: what they may be, what is refused, and that nothing is left behind."""
import math, random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import fastai.callback.schedule  # noqa: F401, adds fit_one_cycle to Learner
from fastai.basics import DataLoader, DataLoaders, Learner
from torch import nn

from ch5clf.callbacks import frozen_batchnorm
from ch5clf.lr_finder import find_lr
from ch5clf.race import RaceFinding
from test_lr_finder import LEARNERS, Breaks, Rows, groups, loop, make, net, quietly, same, state, weights

pytestmark = pytest.mark.usefixtures('ctrl_c')
torch.set_num_threads(1)


# ---- batches and losses of any shape -------------------------------------------------------------------------------
class OwnLoss(nn.Module):
    def __init__(self): super().__init__(); self.net = net()
    def forward(self, pixels, labels): return dict(loss=nn.functional.cross_entropy(self.net(pixels), labels))


def own():
    torch.manual_seed(1)
    model, rows = OwnLoss(), Rows()
    batches = [dict(pixels=x, labels=y) for x, y in zip(rows.x.split(16), rows.y.split(16))]
    return model, torch.optim.SGD(model.parameters(), .1), batches


def of_dict(model, batch): return model(**batch)['loss']


def test_a_step_of_dictionaries_gives_what_tuples_give():
    model, opt, dicts = own()
    before = state(model, opt)
    ours = find_lr(model, opt, batches=dicts, step=of_dict, progress=False)
    assert state(model, opt) == before
    pairs = [(b['pixels'], b['labels']) for b in dicts]
    usual = find_lr(model.net, torch.optim.SGD(model.net.parameters(), .1), nn.functional.cross_entropy, pairs, progress=False)
    assert ours.best == usual.best and len(ours.losses) > 20 and np.array_equal(ours.losses, usual.losses)


def test_a_step_may_take_what_it_likes():
    model, opt, dicts = own()
    odd = [SimpleNamespace(**b) for b in dicts]  # no tensor can be seen in it, so it stays as it is
    f = find_lr(model, opt, batches=odd, step=lambda m, b: m(b.pixels, b.labels)['loss'], progress=False)
    assert len(f.lrs) > 10 and f.stopped == 'diverged'


def test_gradients_are_clipped_before_each_update_and_only_there():
    model, opt, dicts = own()
    seen = []
    def clip(): seen.append(float(nn.utils.clip_grad_norm_(model.parameters(), .01)))
    class Spy(torch.optim.SGD):
        def step(self, closure=None):
            norm = torch.stack([p.grad.norm() for g in self.param_groups for p in g['params']]).norm()
            assert norm <= .0101
            return super().step(closure)
    f = find_lr(model, Spy(model.parameters(), .1), batches=dicts, step=of_dict, before_step=clip, end=1e3, progress=False)
    free = find_lr(model, opt, batches=dicts, step=of_dict, progress=False)
    assert len(seen) == len(f.lrs) and max(seen) > .1 and f.lrs[-1] > 3*free.lrs[-1]


def test_warm_up_holds_the_smallest_rate():
    model, _, dicts = own()
    rates = []
    class Spy(torch.optim.Adam):
        def step(self, closure=None): rates.append(self.param_groups[0]['lr']); return super().step(closure)
    f = find_lr(model, Spy(model.parameters()), batches=dicts, step=of_dict, warmup=7, repeats=1, progress=False)
    assert rates[:8] == [1e-7]*8 and rates[8] > 1e-7 and len(f.lrs) == len(rates) - 7


@pytest.mark.parametrize('kind, says', [
    ('closure', 'LBFGS computes the loss itself'), ('order', 'optimizer is a function'), ('other', 'made anew'), ('dataset', 'not batches'),
    ('float', 'the loss is a float'), ('devices', 'several devices'), ('parallel', 'test model.module'), ('dicts', 'for others give step='),
    ('accumulate', 'accumulate=0: expected a whole number from 1'), ('batches', 'batches is a int'), ('nothing', 'optimizer, batches not given')])
def test_refused_in_one_line_and_nothing_happened(kind, says):
    model, opt, loss, batches = loop()
    kwargs, args = {}, [model, opt, loss, batches]
    if kind == 'closure': args[1] = torch.optim.LBFGS(model.parameters())
    elif kind == 'order': args[1:3] = nn.functional.cross_entropy, opt
    elif kind == 'other': args[1] = torch.optim.Adam(net().parameters())
    elif kind == 'dataset': args[3] = torch.utils.data.TensorDataset(Rows().x, Rows().y)
    elif kind == 'float': args[2] = lambda o, t: float(loss(o, t))
    elif kind == 'devices': args[0] = nn.Sequential(model, nn.Linear(3, 3, device='meta'))
    elif kind == 'parallel': args[0] = nn.DataParallel(model)
    elif kind == 'dicts': args[3] = own()[2]
    elif kind == 'accumulate': kwargs = dict(accumulate=0)
    elif kind == 'batches': args[3] = 5
    elif kind == 'nothing': args = [model, None, loss]
    before = state(model, opt)
    with pytest.raises((ValueError, TypeError), match=says) as caught: find_lr(*args, progress=False, **kwargs)
    assert '\n' not in str(caught.value) and state(model, opt) == before


# ---- few items, small batches, offsets ------------------------------------------------------------------------------
def test_one_batch_again_and_again_has_no_interval():
    model, opt, loss, batches = loop()
    f = find_lr(model, opt, loss, batches[:1], progress=False)
    assert f.interval is None and 'the same batch' in f.why and 'of other seeds' not in repr(f)
    f = find_lr(model, opt, loss, [(x[:2], y[:2]) for x, y in batches], progress=False)
    assert f.interval is None and (not f.trusted or '12 different items' in f.why)
    assert len(f._repr_html_()) > 100


@pytest.mark.parametrize('n', [10, 16, 32])
@pytest.mark.parametrize('seed', [1, 2])
def test_features_do_not_trust_noise_labels_on_few_pictures(n, seed):
    torch.manual_seed(seed)
    rows = [(torch.randn(6), torch.tensor(i % 2)) for i in range(n)]
    dls = DataLoaders(DataLoader(rows, bs=min(n, 16), shuffle=True), DataLoader(rows, bs=n), device='cpu')
    learn = Learner(dls, net(), loss_func=nn.CrossEntropyLoss(), splitter=groups)
    learn.freeze()
    f = find_lr(learn, features=True, progress=False)
    assert not f.trusted and f.best is None and len(f.why) > 20


@pytest.mark.parametrize('size', [2, 4, 8])
def test_small_batches_get_an_answer_near_that_of_large_ones(size):
    found = []
    for n in (size, 32):
        answers = []
        for seed in range(6):
            torch.manual_seed(seed)
            rows, model = Rows(384, seed), nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))
            f = find_lr(model, torch.optim.Adam(model.parameters()), nn.CrossEntropyLoss(), list(zip(rows.x.split(n), rows.y.split(n))), progress=False)
            answers.append(f.best)
        found.append(answers)
    assert sum(a is None for a in found[0]) <= 1, found
    small, large = (np.median([a for a in answers if a]) for answers in found)
    assert large/4 < small < large*4, found


@pytest.mark.parametrize('seed', [2, 3, 4])
def test_a_constant_added_to_the_loss_hardly_matters(seed):
    answers = []
    for more in (0., 1., 3.):
        torch.manual_seed(seed)
        model, opt, loss, batches = loop()
        answers.append(find_lr(model, opt, lambda o, t: loss(o, t) + more, batches, progress=False).best)
    assert all(answers) and max(answers) < 1.5*min(answers), answers


def test_a_learner_without_data_gets_a_clear_word(tmp_path):
    learn = make()
    empty = DataLoaders(DataLoader([], bs=16), DataLoader([], bs=16), device='cpu')
    bare = Learner(empty, net(), loss_func=nn.CrossEntropyLoss())
    for kwargs in (dict(), dict(features=True), dict(race=2)):
        with pytest.raises(ValueError, match='has no pictures.*learn.dls = '): find_lr(bare, progress=False, **kwargs)
    assert find_lr(learn, progress=False).lrs.size


# ---- the race -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('name', ['fresh', 'frozen', 'trained', 'torch AdamW', 'mixup', 'accumulation', 'to_fp16', 'counting callback', 'one short batch'])
def test_race_then_fit_equals_fit(name):
    plain = LEARNERS[name]()
    quietly(plain, lambda o: o.fit_one_cycle(2, 1e-2))
    learn = LEARNERS[name]()
    before, opt = state(learn, learn.dls.train, learn.dls.valid, learn.cbs), learn.opt
    f = find_lr(learn, race=3, progress=False)
    assert isinstance(f, RaceFinding) and len(f.heats) >= 8 and learn.opt is opt
    assert state(learn, learn.dls.train, learn.dls.valid, learn.cbs) == before
    quietly(learn, lambda o: o.fit_one_cycle(2, 1e-2))
    assert same(weights(learn.model), weights(plain.model)) and list(map(float, learn.recorder.losses)) == list(map(float, plain.recorder.losses))


def test_a_heat_is_a_training_of_that_length():
    def fresh():  # without the augmentation of make, which draws for validation too
        torch.manual_seed(3)
        rows = list(zip(Rows().x, Rows().y))
        dls = DataLoaders(DataLoader(rows, bs=16, shuffle=True), DataLoader(rows, bs=48), device='cpu')
        plain = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))  # dropout would differ after each validation
        return Learner(dls, plain, loss_func=nn.CrossEntropyLoss())
    random.seed(3)
    f = find_lr(fresh(), race=10, share=1., progress=False)
    random.seed(3)
    plain = fresh()
    last = f.heats.iloc[-1]
    assert last.updates == 12  # two epochs, as in the training that is compared
    quietly(plain, lambda o: o.fit_one_cycle(2, float(last.rate)))
    assert plain.recorder.values[-1][1] == pytest.approx(last.loss, rel=1e-5)


def test_race_with_groups_and_held_batch_norm():
    learn = make(cbs=frozen_batchnorm())
    before = state(learn.model, learn.dls.train)
    f = find_lr(learn, lr=slice(1e-3, 1e-2), race=4, progress=False)
    assert state(learn.model, learn.dls.train) == before and all(p.requires_grad for p in learn.model.parameters())
    assert f.trusted and f.rates.groups == pytest.approx((f.best/10, f.best)) and f.rates.slice.start == pytest.approx(f.best/10)


def test_race_of_a_loop_is_read_by_validation_where_there_is_some():
    model, opt, loss, batches = loop()
    valid = list(zip(Rows(48, 5).x.split(24), Rows(48, 5).y.split(24)))
    before = state(model, opt)
    with_valid, without = (find_lr(model, opt, loss, batches, race=100, valid=v, progress=False) for v in (valid, None))
    assert state(model, opt) == before and with_valid.trusted
    assert not np.allclose(with_valid.heats.loss[:3], without.heats.loss[:3])


def test_race_answers_by_length_and_costs_what_it_says(capsys):
    model, opt, loss, batches = loop()
    found = find_lr(model, opt, loss, batches, race=400, progress=True)
    said = capsys.readouterr().out
    assert 'for a training of 400; about' in said and found.heats.updates.sum() <= .65*400
    assert set(found.heats.updates) == {40, 10}


@pytest.mark.parametrize('at', [1, 2, 31])
@pytest.mark.parametrize('how', [KeyboardInterrupt(), RuntimeError('no memory'), math.nan])
def test_race_after_interrupt_exception_and_nan(how, at):
    learn = make()
    learn.model[1].add_module('breaks', Breaks(at, how))
    before = state(learn, learn.dls.train, learn.cbs)
    if isinstance(how, RuntimeError):
        with pytest.raises(RuntimeError, match='no memory'): find_lr(learn, race=2, progress=False)
    else:
        f = find_lr(learn, race=2, progress=False)
        assert f.trusted is (f.best is not None) and not (f.trusted and at < 31) and len(f.why) > 10 and f._repr_html_()
    assert state(learn, learn.dls.train, learn.cbs) == before


def test_race_of_a_finished_model_says_that_nothing_is_gained():
    learn = make()
    quietly(learn, lambda o: o.fit_one_cycle(12, 1e-2))
    f = find_lr(learn, race=1, progress=False)
    assert f.best is None or f.heats.loss.min() < quietly(learn, lambda o: o.validate())[0]


@pytest.mark.parametrize('kwargs, says', [(dict(race=0), 'race=0'), (dict(race='4'), "race='4'"), (dict(race=2, share=0), 'share=0'), (dict(race=2, features=True), 'do not go together')])
def test_races_without_meaning(kwargs, says):
    with pytest.raises(ValueError, match=says): find_lr(make(), progress=False, **kwargs)


def test_verify_after_a_race_leaves_no_trace():
    learn = make()
    f = find_lr(learn, race=2, progress=False)
    before = state(learn, learn.dls.train, learn.cbs)
    table = f.verify(around=1e-2, length=1)
    assert len(table) == 3 and np.isfinite(table.loss).all() and state(learn, learn.dls.train, learn.cbs) == before
