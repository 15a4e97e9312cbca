"""Fine-tuning taken apart: each part equal to fastai's own, on tiny models and pictures in memory; what is refused, and what is left as it was."""
import math, random

import numpy as np
import pytest
import torch
from fastai.basics import Callback, CancelValidException, CrossEntropyLossFlat, DataLoader, DataLoaders, Learner, MSELossFlat, Perplexity, R2Score, SGD, accuracy, error_rate, mae, mse, params, rmse, set_seed
from fastai.callback.schedule import ParamScheduler  # adds fit_one_cycle and fine_tune to Learner
from fastai.callback.training import BnFreeze
from hypothesis import given, settings, strategies as st
from torch import nn

from ch5clf.epochs import lower_better
from ch5clf.finetune import epoch_story, feature_fit, frozen_batchnorm, layer_groups, one_cycle, rates_for, retrain, two_step_fit


def data(n=48, seed=0):
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    return torch.randn(n, 3, 8, 8, generator=g) + y[:, None, None, None]*.7, y


def loaders(bs=8, train=48, valid=20):
    random.seed(5)  # a fastai loader takes its own generator's seed from here
    made = [list(zip(*data(n, seed))) for n, seed in ((train, 0), (valid, 1))]
    return DataLoaders(DataLoader(made[0], bs=bs, shuffle=True, drop_last=True), DataLoader(made[1], bs=bs))


def body(): return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
def head(dropout=.5): return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(8), nn.Dropout(dropout), nn.Linear(8, 3))
def three(model): return [params(model[0][:3]), params(model[0][3:]), params(model[1:])]


def learner(dropout=.5, seed=1, **kwargs):
    set_seed(seed)
    model = nn.Sequential(body(), head(dropout))
    with torch.no_grad():  # statistics as a pretrained body has them: not those of our pictures
        for m in model[0]:
            if isinstance(m, nn.BatchNorm2d): m.running_mean.normal_(); m.running_var.uniform_(.5, 2)
    learn = Learner(loaders(), model, loss_func=CrossEntropyLossFlat(), splitter=three, metrics=[error_rate, accuracy], **kwargs)
    learn.remove_cbs(learn.cbs.filter(lambda c: c.name == 'progress'))
    learn.logger = lambda *_: None
    return learn


def state(learn): return {k: v.clone() for k, v in learn.model.state_dict().items()}
def same(a, b): return all(torch.equal(a[k], b[k]) for k in a)


class Unwatched(Callback):
    def before_validate(self): raise CancelValidException


class Hypers(Callback):
    "What the optimiser has at each step, for every group."
    order = 61  # after ParamScheduler
    def before_fit(self): self.lr, self.mom = [], []
    def before_batch(self):
        if self.training: self.lr.append([h['lr'] for h in self.opt.hypers]); self.mom.append([h['mom'] for h in self.opt.hypers])


# --- two_step_fit ---

@pytest.mark.parametrize('kwargs', [{}, dict(base_lr=.01), dict(freeze_epochs=2, lr_mult=10), dict(pct_start=.5, div=3.), dict(wd=.1, moms=(.9, .8, .9)), dict(cbs=frozen_batchnorm)], ids=' '.join)
@pytest.mark.parametrize('opt', [None, SGD])
def test_two_step_fit_is_fine_tune_bit_for_bit(kwargs, opt):
    ends = []
    for fit in (Learner.fine_tune, two_step_fit):
        learn = learner(**({} if opt is None else dict(opt_func=opt)))
        set_seed(3)
        fit(learn, 2, **{k: v() if k == 'cbs' else v for k, v in kwargs.items()})
        ends.append((state(learn), [list(map(float, v)) for v in learn.recorder.values], learn.recorder.lrs))
    assert same(ends[0][0], ends[1][0]) and ends[0][1:] == ends[1][1:]
    assert not same(ends[0][0], state(learner()))


def test_two_step_fit_has_nothing_to_freeze_in_one_group():
    learn = Learner(loaders(), nn.Sequential(body(), head()), loss_func=CrossEntropyLossFlat())
    with pytest.raises(ValueError, match='single parameter group.*splitter'): two_step_fit(learn, 1)


# --- rates ---

rates = st.floats(1e-9, 10, allow_nan=False)
@settings(max_examples=200, deadline=None)
@given(st.one_of(rates, st.builds(slice, rates), st.builds(slice, rates, rates)), st.integers(1, 7))
def test_rates_are_the_optimisers_own(lr, n):
    opt = SGD([[nn.Parameter(torch.zeros(1))] for _ in range(n)], lr=1.)
    opt.set_hyper('lr', lr)
    assert rates_for(lr, n) == [h['lr'] for h in opt.hypers]


@settings(max_examples=100, deadline=None)
@given(rates, rates, st.integers(2, 9))
def test_a_slice_has_equal_ratios_between_its_ends(a, b, n):
    r = rates_for(slice(a, b), n)
    assert r[0] == a and r[-1] == pytest.approx(b, rel=1e-9)
    assert [y/x for x, y in zip(r, r[1:])] == pytest.approx([(b/a)**(1/(n-1))]*(n-1), rel=1e-9)


@pytest.mark.parametrize('lr, word', [(slice(None), 'last group'), (slice(1e-3, None), 'last group'), (slice(0, 1e-3), 'first rate is 0'), (slice(-1e-5, 1e-3), 'first rate'), (slice(1e-5, 0), 'last rate'), (slice(1e-5, 1e-3, 2), 'step'),
    (slice(math.nan, 1e-3), 'finite'), (slice(1e-5, math.inf), 'finite'), (0, 'above 0'), (-1e-3, 'above 0'), ('1e-3', 'finite'), (None, 'finite'), (True, 'finite'), ([1e-3, 1e-2], 'finite')])
def test_bad_rates_are_refused(lr, word):
    with pytest.raises(ValueError, match=word): rates_for(lr, 3)


@pytest.mark.parametrize('n', [0, -1, 2.5, True, '3'])
def test_bad_group_numbers_are_refused(n):
    with pytest.raises(ValueError, match='number of parameter groups'): rates_for(1e-3, n)


def test_what_fastai_takes_without_a_word():
    opt = SGD([[nn.Parameter(torch.zeros(1))] for _ in range(3)], lr=1.)
    opt.set_hyper('lr', slice(0, 1e-3))
    assert [h['lr'] for h in opt.hypers] == rates_for(slice(1e-3), 3)


# --- layer_groups ---

def test_layer_groups_count_everything_and_change_nothing():
    learn = learner()
    before = state(learn)
    table = layer_groups(learn)
    assert learn.opt is None and same(before, state(learn))
    assert table.rate.isna().all() and table.layers.tolist() == [2, 2, 2] and table.norms.tolist() == [1, 1, 1]
    assert table.parameters.sum() == sum(p.numel() for p in learn.model.parameters()) == table.trained.sum()
    assert list(table['first']) == ['0.0', '0.3', '1.2'] and list(table['last']) == ['0.1', '0.4', '1.4']


@pytest.mark.parametrize('train_bn, body_trained', [(True, [12, 16]), (False, [0, 0])])
def test_layer_groups_show_what_freezing_left_trained(train_bn, body_trained):
    learn = learner(train_bn=train_bn)
    learn.freeze()
    table = layer_groups(learn)
    assert table.trained.tolist() == [*body_trained, table.parameters[2]]
    learn.opt.set_hyper('lr', slice(1e-5, 1e-3))
    assert layer_groups(learn).rate.tolist() == rates_for(slice(1e-5, 1e-3), 3)
    learn.unfreeze()
    assert (layer_groups(learn).trained == table.parameters).all()


def test_layer_groups_name_a_parameter_in_no_group():
    learn = learner()
    learn.splitter = lambda m: three(m)[1:]
    with pytest.raises(ValueError, match='in no group'): layer_groups(learn)


# --- one_cycle ---

@pytest.mark.parametrize('epochs', [1, 3])
@pytest.mark.parametrize('kwargs', [{}, dict(pct_start=.3, div=5.), dict(pct_start=.99), dict(div_final=100., moms=(.9, .7, .95))], ids=str)
def test_one_cycle_is_what_the_recorder_logged(epochs, kwargs):
    learn, seen = learner(), Hypers()
    learn.fit_one_cycle(epochs, slice(1e-4, 1e-2), cbs=seen, **kwargs)
    lr, mom = one_cycle(epochs*len(learn.dls.train), rates_for(slice(1e-4, 1e-2), 3), **kwargs)
    np.testing.assert_allclose(lr, seen.lr, rtol=2e-6, atol=1e-12)
    np.testing.assert_allclose(np.repeat(mom[:, None], 3, 1), seen.mom, rtol=1e-6)
    np.testing.assert_allclose(lr[:, -1], learn.recorder.hps['lr'], rtol=2e-6, atol=1e-12)
    np.testing.assert_allclose(one_cycle(len(lr), 1e-2, **kwargs)[0], lr[:, -1], rtol=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.integers(4, 500), st.floats(1e-6, 1), st.floats(.05, .95))
def test_one_cycle_goes_up_once_and_down_once(total, peak, pct):
    lr, mom = one_cycle(total, peak, pct_start=pct)
    top = int(lr.argmax())
    assert (np.diff(lr[:top+1]) >= 0).all() and (np.diff(lr[top:]) <= 0).all() and lr[0] == pytest.approx(peak/25) and lr.max() <= peak*(1 + 1e-12)
    assert abs(int(mom.argmin()) - top) <= 1 and mom.min() >= .85 - 1e-12 and mom.max() <= .95 + 1e-12


@pytest.mark.parametrize('args, word', [((0, 1e-3), 'number of steps'), ((2.5, 1e-3), 'number of steps'), ((10, -1), 'above 0'), ((10, [1e-3, 0]), 'above 0')])
def test_one_cycle_refuses(args, word):
    with pytest.raises(ValueError, match=word): one_cycle(*args)
    with pytest.raises(ValueError, match='between 0 and 1'): one_cycle(10, 1e-3, pct_start=1.)


# --- frozen_batchnorm ---

def norms(learn): return {k: v for k, v in state(learn).items() if k.startswith(('0.1.', '0.4.'))}


@pytest.mark.parametrize('train_bn', [True, False])
@pytest.mark.parametrize('frozen', [True, False])
def test_the_bodys_batchnorm_does_not_move(train_bn, frozen):
    learn = learner(train_bn=train_bn)
    learn.freeze() if frozen else learn.unfreeze()
    before, needed, all_before = norms(learn), [p.requires_grad for p in learn.model.parameters()], state(learn)
    learn.fit_one_cycle(2, 1e-2, cbs=frozen_batchnorm())
    assert same(before, norms(learn)) and [p.requires_grad for p in learn.model.parameters()] == needed
    after = state(learn)
    assert torch.equal(all_before['0.0.weight'], after['0.0.weight']) == frozen
    assert not torch.equal(all_before['1.2.running_mean'], after['1.2.running_mean']) and not torch.equal(all_before['1.4.weight'], after['1.4.weight'])


def test_with_affine_only_the_statistics_rest():
    learn = learner()
    learn.unfreeze()
    before = norms(learn)
    learn.fit_one_cycle(1, 1e-2, cbs=frozen_batchnorm(affine=True))
    after = norms(learn)
    assert all(torch.equal(before[k], after[k]) == ('running' in k or 'num_batches' in k) for k in before)


def test_momentum_of_an_earlier_fit_does_not_move_it():
    learn = learner()
    learn.unfreeze()
    learn.fit(1, 1e-2)
    before = norms(learn)
    learn.fit(1, 1e-2, cbs=frozen_batchnorm())
    assert same(before, norms(learn))


def test_after_an_interrupted_fit_unfreezing_puts_all_right():
    learn = learner()
    class Interrupt(Callback):
        def after_batch(self): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): learn.fit(1, cbs=[Interrupt(), frozen_batchnorm()])
    learn.unfreeze()
    before = norms(learn)
    learn.fit(1, 1e-3)
    assert all(p.requires_grad for p in learn.model.parameters()) and not any(torch.equal(before[k], v) for k, v in norms(learn).items())


def test_the_next_fit_is_as_ever():
    learn = learner()
    learn.unfreeze()
    learn.fit(1, 1e-3, cbs=frozen_batchnorm())
    before = norms(learn)
    learn.fit(1, 1e-3)
    assert not any(torch.equal(before[k], v) for k, v in norms(learn).items())


@pytest.mark.parametrize('unfrozen', [True, False])
def test_bnfreeze_of_fastai_leaves_it_moving(unfrozen):
    learn = learner()
    learn.unfreeze() if unfrozen else learn.freeze()
    before = norms(learn)
    learn.fit_one_cycle(1, 1e-3, cbs=BnFreeze)
    assert not torch.equal(before['0.1.running_mean'], norms(learn)['0.1.running_mean'])


def test_a_rate_of_nothing_moves_the_statistics_all_the_same():
    learn = learner()
    learn.unfreeze()
    before = state(learn)
    learn.fit(1, 0.)
    after = state(learn)
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    assert moved and all('running' in k or 'num_batches' in k for k in moved)


def test_frozen_batchnorm_wants_a_body():
    learn = Learner(loaders(), nn.ModuleDict(), loss_func=CrossEntropyLossFlat())
    learn.model = head()[-1]
    with pytest.raises(ValueError, match='no body and head'): learn.fit(1, cbs=frozen_batchnorm())


# --- feature_fit ---

def test_feature_fit_is_the_frozen_stage():
    ends = []
    for fit in (lambda l: (l.freeze(), l.fit_one_cycle(3, 1e-2, cbs=frozen_batchnorm())), lambda l: feature_fit(l, 3, 1e-2)):
        learn = learner()
        set_seed(4)
        out = fit(learn)
        ends.append((state(learn), np.array((out if isinstance(out, Learner) else learn).recorder.values, float)))
    for k, v in ends[0][0].items(): torch.testing.assert_close(ends[1][0][k], v, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(*(e[1] for e in ends), rtol=1e-4, atol=1e-5)


def test_feature_fit_leaves_the_learner_frozen_and_ready():
    learn = learner()
    before = state(learn)
    small = feature_fit(learn, 2, 1e-2)
    after = state(learn)
    assert all(torch.equal(before[k], after[k]) for k in before if k.startswith('0.')) and not torch.equal(before['1.4.weight'], after['1.4.weight'])
    assert layer_groups(learn).trained.tolist() == [12, 16, 43] and learn.opt.frozen_idx == 2
    assert len(small.recorder.values) == 2 and epoch_story(small).metric == 'error_rate'
    loss, error, _ = learn.validate()
    assert loss == pytest.approx(small.recorder.values[-1][1], rel=1e-4) and error == pytest.approx(small.recorder.values[-1][2])
    learn.unfreeze()
    learn.fit_one_cycle(1, slice(1e-4, 1e-3), cbs=frozen_batchnorm())
    assert not torch.equal(after['0.0.weight'], learn.model.state_dict()['0.0.weight'])


def test_feature_fit_runs_the_body_once():
    learn, calls = learner(), []
    learn.model[0].register_forward_hook(lambda m, i, o: calls.append(len(o)))
    feature_fit(learn, 5, 1e-2)
    assert sum(calls) == 48 + 20
    calls.clear()
    feature_fit(learn, 5, 1e-2, views=3)
    assert sum(calls) == 3*48 + 20
    calls.clear()
    feature_fit(learn, 5, 1e-2, cbs=Unwatched())
    assert sum(calls) == 48  # where nothing is validated, no validation picture is looked at


def test_feature_fit_keeps_the_modes_and_refuses():
    learn = learner()
    learn.model.train()
    feature_fit(learn, 1)
    assert learn.model[0].training
    for views in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match='views'): feature_fit(learn, 1, views=views)
    learn.dls = loaders(bs=64)
    with pytest.raises(ValueError, match='smaller bs'): feature_fit(learn, 1)


# --- epoch_story and retrain ---

def told(train, valid, error, lrs=None, **kwargs):
    learn = learner()
    r = learn.recorder
    r.metric_names, r.values = ['epoch', 'train_loss', 'valid_loss', 'error_rate', 'accuracy', 'time'], [[a, b, c, 1-c] for a, b, c in zip(train, valid, error)]
    r.lrs, r.iters = list(np.linspace(1, .1, 3*len(train))), [3*(i+1) for i in range(len(train))]
    return epoch_story(learn, **kwargs)


def test_a_story_of_doubts_and_one_of_memorising():
    falling = [1., .8, .6, .4, .2]
    plain = told(falling, [1., .9, .8, .7, .6], [.5, .4, .3, .25, .2])
    assert (plain.best, plain.doubts_from, plain.overfits_from) == (5, None, None)
    doubts = told(falling, [1., .8, .7, .8, .9], [.5, .4, .3, .25, .2])
    assert (doubts.best, doubts.doubts_from, doubts.overfits_from) == (5, 4, None)
    memory = told(falling, [1., .8, .7, .8, .9], [.5, .2, .21, .45, .5], margin=.05)
    assert (memory.best, memory.doubts_from, memory.overfits_from) == (2, 4, 4)
    assert told(falling, [1., .8, .7, .8, .9], [.5, .2, .21, .22, .23]).overfits_from is None  # within one standard error of 20 pictures
    stuck = told([1., .8, .9, 1., 1.1], [1., .8, .9, 1., 1.1], [.5, .2, .5, .6, .7], margin=.05)
    assert stuck.overfits_from is None  # the training loss rises too: that is divergence, not memorising
    assert 'Over-fitting begins with epoch 4' in str(memory) and 'No over-fitting' in str(plain) and '<table' in memory._repr_html_()


@pytest.mark.parametrize('metric, lower', [('error_rate', True), ('valid_loss', True), ('mse', True), ('_rmse', True), ('mae', True), ('perplexity', True), ('hamming_loss', True),
    ('accuracy', False), ('r2_score', False), ('f1_score', False), ('dice', False), ('pearsonr', False)])
def test_direction_of_known_metrics(metric, lower): assert lower_better(metric) == lower


@pytest.mark.parametrize('metric', ['lossless', 'errors', 'gap', 'f2', 'scores'])
def test_direction_is_never_guessed(metric):
    with pytest.raises(ValueError, match='lower_is_better='): lower_better(metric)


@pytest.mark.parametrize('metric, more_is_better', [(mse, False), (rmse, False), (mae, False), (R2Score(), True), (Perplexity(), False)], ids=lambda m: getattr(m, 'name', getattr(m, '__name__', str(m))))
def test_a_regression_that_gets_better_has_its_best_epoch_late(metric, more_is_better):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(400, 8, generator=g)
    pairs = list(zip(x, x@torch.randn(8, 1, generator=g)))
    set_seed(0)
    learn = Learner(DataLoaders(DataLoader(pairs[:300], bs=32, shuffle=True), DataLoader(pairs[300:], bs=64)), nn.Linear(8, 1), loss_func=MSELossFlat(), metrics=[metric])
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(6, .1)
    story = epoch_story(learn)
    values = story.table[story.metric]
    assert story.best == (values.idxmax() if more_is_better else values.idxmin()) and story.best > 3
    assert story.overfits_from is None and 'give margin=' in str(story)  # its noise is not known


def test_over_fitting_only_beyond_noise():
    "Six of 144 pictures more are chance; thirty are not."
    falling, rising = [1., .8, .6, .4], [1., .8, .9, 1.]
    learn = learner()
    def on(n, errors):
        learn.recorder.metric_names, learn.recorder.values = ['epoch', 'train_loss', 'valid_loss', 'error_rate', 'time'], [list(r) for r in zip(falling, rising, errors)]
        learn.recorder.lrs, learn.recorder.iters = [1.]*4, [1, 2, 3, 4]
        learn.dls.loaders[1] = DataLoader(list(range(n)), bs=4)
        return epoch_story(learn).overfits_from
    assert on(144, [.4, 30/144, 36/144, 36/144]) is None
    assert on(144, [.4, 30/144, 60/144, 60/144]) == 3
    assert on(144, [.4, 0., 1/144, 2/144]) is None


def test_a_story_by_a_metric_where_more_is_better():
    story = told([1., .8, .6], [1., .8, .7], [.5, .2, .3], metric='accuracy', margin=.01)
    assert (story.metric, story.best, story.overfits_from) == ('accuracy', 2, 3)
    assert told([1., .8, .6], [1., .7, .8], [.5, .2, .1], metric='valid_loss').best == 2
    assert list(story.table.index) == [1, 2, 3] and story.table.rate.iloc[-1] == pytest.approx(.1)


def test_a_story_needs_a_training_and_a_known_metric():
    with pytest.raises(ValueError, match='train the learner first'): epoch_story(learner())
    with pytest.raises(ValueError, match='f1: not recorded; there are valid_loss, error_rate, accuracy'): told([1.], [1.], [.5], metric='f1')


def test_a_story_needs_validation():
    learn = learner()
    class Skip(Callback):
        def before_validate(self): raise CancelValidException
    learn.fit(1, cbs=Skip())
    with pytest.raises(ValueError, match='not all validated.*error_rate'): epoch_story(learn)


def test_a_story_is_the_recorders():
    learn = learner()
    learn.fit_one_cycle(3, 1e-2)
    story = epoch_story(learn)
    np.testing.assert_allclose(story.table[['train_loss', 'valid_loss', 'error_rate', 'accuracy']], np.array(learn.recorder.values, float))
    assert story.table.rate.tolist() == [learn.recorder.lrs[i] for i in (5, 11, 17)]


def test_retrain_is_a_fresh_run_with_the_chosen_number():
    learn = learner()
    set_seed(9)
    fresh = learner(seed=9)
    two_step_fit(fresh, 2)
    again = retrain(lambda: learner(seed=9), 2, seed=9)
    assert same(state(fresh), state(again))
    story = told([1., .8, .6], [1., .8, .7], [.5, .2, .3])
    assert len(retrain(learner, story, fit=lambda l, n, **k: l.fit(n, **k), lr=1e-3).recorder.values) == story.best == 2


def test_retrain_refuses_a_used_learner_and_odd_numbers():
    used = learner()
    used.fit(1)
    with pytest.raises(ValueError, match='trained already'): retrain(lambda: used, 1)
    for epochs in (0, 1.5, None, True):
        with pytest.raises(ValueError, match='whole number'): retrain(learner, epochs)


# --- the question bank's numbers ---

@pytest.mark.parametrize('key, lr', [('q20b', slice(1e-5, 1e-3)), ('q20c', slice(3e-3))])
def test_the_questions_on_slices_hold_the_true_rates(key, lr):
    from ch5clf.questions import questions
    assert questions[key].check(rates_for(lr, 3)).state == 'right'
