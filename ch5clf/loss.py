import pandas as pd
import torch
from torch import Tensor
from ch5clf.targets import (check_hard_or_soft, check_logits, check_options, check_table,
                            check_target, check_yes_no, class_dim)

#--- c1
def _wide(x): return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x

def _like(y, x): # under autocast a loss stays float32, as PyTorch's does
    return y if torch.is_autocast_enabled(x.device.type) else y.to(x.dtype)

def _shift(x, dim):
    "Logits minus the largest of them: the same probabilities, and no `exp` overflows."
    return _wide(x) - _wide(x).detach().amax(dim, keepdim=True) if x.numel() else x

#--- c2
def softmax(x:Tensor, dim:int=-1) -> Tensor:
    """exp(x) / exp(x).sum(dim): values in 0..1 that sum to 1 along `dim`, in the dtype of `x`.

    `TypeError` for no floating-point tensor, `IndexError` for a wrong `dim`. Source: 01, section 6."""
    check_logits(x, 'softmax', dim=dim)
    e = _shift(x, dim).exp()
    return _like(e / e.sum(dim, keepdim=True), x)

def log_softmax(x:Tensor, dim:int=-1) -> Tensor:
    """log(softmax(x)) in nats, as x - log(sum(exp(x))): no probability rounds to 0 before its log.

    Shape and dtype of `x`, errors as in `softmax`. Source: 01, section 6."""
    check_logits(x, 'log_softmax', dim=dim)
    z = _shift(x, dim)
    return _like(z - z.exp().sum(dim, keepdim=True).log(), x)

#--- c3
def _kept(logits, target, weight, ignore_index):
    "Class numbers fit for indexing (an ignored one as 0), and the weight of each item (0 if ignored)."
    keep = target.long() != ignore_index
    t = target.long().where(keep, 0)
    return t, keep, keep.to(logits.dtype) if weight is None else weight.to(logits.dtype)[t] * keep

def _reduce(loss, w, reduction):
    if reduction == 'none': return loss
    if reduction == 'sum': return loss.sum()
    return loss.mean() if w is None else loss.sum() / w.sum()

#--- c4
def nll(logp:Tensor, target:Tensor, weight=None, ignore_index=-100, reduction='mean') -> Tensor:
    """Minus the log probability of the right class, picked by indexing: PyTorch's `nll_loss`.

    `logp`: *log* probabilities (items, classes, ...). Everything else as in `cross_entropy`, but
    the target is class numbers only. Source: 01, section 5."""
    check_logits(logp, 'nll', least=1)
    check_options('nll', reduction, logp.shape[class_dim(logp)], weight)
    if check_target(logp, target, 'nll', ignore_index):
        raise TypeError(f'nll: the target is {target.dtype}, probabilities; expected class numbers '
                        '(cross_entropy takes both)')
    x, dim = _wide(logp), class_dim(logp)
    t, keep, w = _kept(x, target, weight, ignore_index)
    picked = x.gather(dim, t.unsqueeze(dim)).squeeze(dim) # x[range(len(t)), t], for any shape
    return _like(_reduce((-picked * w).where(keep, 0), w, reduction), logp)

#--- c5
def _checked(who, x, target, weight, ignore_index, reduction, smoothing):
    "Every rule of cross-entropy; True where the target holds probabilities."
    check_logits(x, who, least=1)
    check_options(who, reduction, x.shape[class_dim(x)], weight, smoothing)
    soft = check_target(x, target, who, ignore_index)
    check_hard_or_soft(who, soft, weight, ignore_index)
    return soft

def _mass(x, target, soft, weight, ignore_index, eps):
    "What the loss puts on each class: the target, a share `eps` of it spread evenly, times the weights."
    dim = class_dim(x)
    t = None if soft else _kept(x, target, weight, ignore_index)[0].unsqueeze(dim)
    hot = target.to(x.dtype) if soft else torch.zeros_like(x).scatter(dim, t, 1)
    mass = hot * (1 - eps) + eps / x.shape[dim]
    return mass if weight is None else mass * weight.to(x.dtype).view(-1, *[1]*(x.dim() - dim - 1))

#--- c6
def cross_entropy(logits:Tensor, target:Tensor, weight=None, ignore_index=-100, reduction='mean',
                  label_smoothing=0.) -> Tensor: # nats: a scalar, or one per item with 'none'
    """-log(softmax) of the right class: PyTorch's `cross_entropy`, equal forward and backward.

    `logits` (items, classes, ...) or (classes,); `target` class numbers without the class dimension,
    or probabilities in the shape of `logits`. `weight` (classes,); `ignore_index` marks items to leave
    out; `reduction` 'mean' (by the weights kept), 'sum', 'none'; `label_smoothing` 0..1. Errors name
    what does not fit. Source: 01, section 6; Bishop 2006, 4.3.4; Szegedy et al. 2016, section 7."""
    soft = _checked('cross_entropy', logits, target, weight, ignore_index, reduction, label_smoothing)
    logp, dim = log_softmax(_wide(logits), class_dim(logits)), class_dim(logits)
    if not soft and not label_smoothing:
        return _like(nll(logp, target, weight, ignore_index, reduction), logits)
    loss = -(_mass(logp, target, soft, weight, ignore_index, label_smoothing) * logp).sum(dim)
    if soft: return _like(_reduce(loss, None, reduction), logits)
    _, keep, w = _kept(logp, target, weight, ignore_index)
    return _like(_reduce(loss.where(keep, 0), w, reduction), logits)

#--- c7
def binary_loss(logits:Tensor, target:Tensor, weight=None, reduction='mean', pos_weight=None) -> Tensor:
    """-log of what sigmoid gives to the right one of two classes: `binary_cross_entropy_with_logits`.

    `target`, `logits`: the same shape; 1 is yes, 0 no. `weight` and `pos_weight` (of a yes)
    broadcast. Errors name what does not fit. Source: 01, sections 2 and 8."""
    return _yes_no(logits, target, weight, reduction, pos_weight, 'binary_loss')

def multilabel_loss(logits:Tensor, target:Tensor, weight=None, reduction='mean', pos_weight=None) -> Tensor:
    """A yes-or-no question a label: `binary_loss` for pictures with several of the classes, or none.

    `target`: the shape of `logits`, 1 where a label is present. Source: 01, section 8."""
    return _yes_no(logits, target, weight, reduction, pos_weight, 'multilabel_loss')

def _yes_no(logits, target, weight, reduction, pos_weight, who):
    check_yes_no(logits, target, who, weight=weight, pos_weight=pos_weight)
    check_options(who, reduction)
    x, t = _wide(logits), _wide(target.to(logits.dtype))
    zero = torch.zeros_like(x)
    yes, no = torch.logaddexp(zero, -x), torch.logaddexp(zero, x) # -log(p) and -log(1 - p)
    loss = t * yes * (1 if pos_weight is None else pos_weight.to(x.dtype)) + (1 - t) * no
    if weight is not None: loss = loss * weight.to(x.dtype)
    return _like(_reduce(loss, None, reduction), logits)

#--- c8
def cross_entropy_grad(logits:Tensor, target:Tensor, weight=None, ignore_index=-100, reduction='mean',
                       label_smoothing=0.) -> Tensor: # shape and dtype of `logits`
    """The gradient of `cross_entropy` by the logits, written down: softmax minus target.

    With weights and smoothing, `mass` is what the loss puts on each class, and softmax is scaled to
    its total. 'none' gives the gradient of the sum. Source: 01, section 7; Bishop 2006, eq. 4.109."""
    soft = _checked('cross_entropy_grad', logits, target, weight, ignore_index, reduction, label_smoothing)
    x, dim = _wide(logits), class_dim(logits)
    mass = _mass(x, target, soft, weight, ignore_index, label_smoothing)
    grad = softmax(x, dim) * mass.sum(dim, keepdim=True) - mass
    if soft: return _like(grad / (x.numel() / x.shape[dim] if reduction == 'mean' else 1), logits)
    _, keep, w = _kept(x, target, weight, ignore_index)
    grad = (grad / (w.sum() if reduction == 'mean' else 1)).where(keep.unsqueeze(dim), 0)
    return _like(grad, logits)

#--- c9
def working_table(logits:Tensor, target=None, names=None) -> pd.DataFrame: # a row for each class
    """The columns of softmax, in float64: logit, exp, softmax; with a target also target, -log softmax, gradient.

    `logits` (classes,) or (items, classes); `target` the right class (a list for several items), or
    probabilities; `names` of the classes. Errors name what does not fit. Source: 01, section 7."""
    check_logits(logits, 'working_table', least=1)
    x = logits.detach().double().cpu()
    names = list(range(x.shape[-1])) if names is None else list(names)
    check_table(x, names)
    columns = {'logit': x, 'exp': x.exp(), 'softmax': softmax(x)}
    if target is not None:
        t = torch.as_tensor(target).cpu()
        soft = check_target(x, t, 'working_table', None)
        columns |= {'target': _mass(x, t, soft, None, -100, 0), '-log softmax': -log_softmax(x),
                    'gradient': cross_entropy_grad(x, t, reduction='sum')}
    rows = pd.Index(names, name='class')
    if x.dim() == 2: rows = pd.MultiIndex.from_product([range(len(x)), names], names=['item', 'class'])
    return pd.DataFrame({k: v.flatten().numpy() for k, v in columns.items()}, index=rows)
