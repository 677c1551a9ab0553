"""Pictures of what an audit found, as SVG that takes its ink from the page around it."""

import io
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedsim.audit.bounds import CONFIDENCE
from fedsim.audit.membership import RATES, Membership
from fedsim.audit.one_run import OneRun
from fedsim.audit.scores import curve, thinned

_INK = "#0a0b0c"  # stands in for the page's own
_IN, _OUT = "#d9730d", "#3d7fd6"  # readable on white and on black, and apart for every eye
_WIDTH, _HEIGHT = 7.2, 3.2
_UNTOLD = ("Creator", "Date", "Format", "Type")
_GOLDEN = 0.618  # multiples of it, modulo 1, fill an interval evenly
_LEAST_LOSS = 1e-6


def svg(figure: Figure) -> str:
    """A figure as an `<svg>` element; the same figure gives the same text."""
    out = io.StringIO()
    with rc_context({"svg.hashsalt": "fedsim", "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", transparent=True, metadata=dict.fromkeys(_UNTOLD))
    text = out.getvalue()
    return text[text.index("<svg") :].replace(_INK, "currentColor")


def picture(found: OneRun | Membership) -> Figure:
    """Two panels: what the adversary saw, and what that comes to."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
        if isinstance(found, OneRun):
            _draw_evidence(left, found)
            _draw_bound(right, found)
        else:
            _draw_losses(left, found)
            _draw_curve(right, found)
        for axes in (left, right):
            axes.spines[["top", "right"]].set_visible(False)
    return figure


_STYLE: dict[Any, Any] = {
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.facecolor": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "legend.frameon": False,
}


def _draw_evidence(axes: Axes, found: OneRun) -> None:
    """Every canary by its evidence; in above, out below."""
    reach = np.abs(found.evidence).max() or 1.0
    shown = found.evidence / reach
    for inside, height, colour, name in ((True, 1, _IN, "in"), (False, 0, _OUT, "out")):
        own = shown[found.inside == inside]
        spread = 0.6 * (_GOLDEN * np.arange(len(own)) % 1 - 0.5)
        axes.scatter(own, height + spread, s=14, color=colour, alpha=0.8, linewidths=0)
        right = int(((own > 0) == inside).sum())
        axes.text(-1.08, height + 0.38, f"{name}: {right} of {len(own)} guessed right", color=colour, va="bottom")
    axes.axvline(0, color=_INK, linewidth=0.8)
    axes.set_xlim(-1.1, 1.1)
    axes.set_ylim(-0.5, 1.75)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("evidence for being in, over the strongest; threshold 0")


def _draw_bound(axes: Axes, found: OneRun) -> None:
    """Claim and lower bound side by side."""
    claim = "claim, with noise" if found.noise_off else "claim"
    finite = [value for value in (found.bound, found.claim, found.reach) if np.isfinite(value)]
    top = 1.25 * max(finite)
    shown = min(found.claim, top)
    bars = axes.bar([0, 1], [shown, found.bound], width=0.55, color=[_OUT, _IN])
    labels = [f"{found.claim:.2f}" if np.isfinite(found.claim) else "infinite", f"{found.bound:.2f}"]
    axes.bar_label(bars, labels=labels, padding=2)
    axes.axhline(found.reach, color=_INK, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_title(f"dashed: most that {found.canaries} canaries can show", fontsize=8, color=_INK)
    axes.set_xticks([0, 1], [claim, f"lower bound, {100 * CONFIDENCE:.0f} %"])
    axes.set_xlim(-0.5, 1.5)
    axes.set_ylim(0, top)
    axes.set_ylabel(f"epsilon at delta {found.delta:g}")


def _draw_losses(axes: Axes, found: Membership) -> None:
    """How the losses of both kinds are spread."""
    both = np.concatenate([found.members, found.others])
    finite = np.maximum(both[np.isfinite(both)], _LEAST_LOSS)
    low, high = (float(finite.min()), 2 * float(finite.max())) if len(finite) else (_LEAST_LOSS, 1.0)
    edges = np.geomspace(low, high, 41).tolist()
    for losses, colour, name in ((found.members, _IN, "members"), (found.others, _OUT, "others")):
        weights = np.full(len(losses), 1 / len(losses))
        kept = np.clip(losses, low, edges[-2])
        axes.hist(kept, edges, weights=weights, histtype="step", color=colour, label=name)
    axes.set_xscale("log")
    axes.set_xlabel("loss of a row")
    axes.set_ylabel("share of rows")
    axes.legend(loc="upper center")


def _draw_curve(axes: Axes, found: Membership) -> None:
    """True over false positives, both logarithmic: what matters are few false ones."""
    false, true = thinned(*curve(-found.members, -found.others))
    least = 0.5 / max(len(found.others), len(found.members))
    axes.plot(np.maximum(false, least), np.maximum(true, least), color=_IN, drawstyle="steps-post")
    axes.plot([least, 1], [least, 1], color=_INK, linewidth=0.8, linestyle=(0, (4, 3)))
    for rate in RATES:
        axes.axvline(rate, color=_INK, linewidth=0.4)
    axes.set(xscale="log", yscale="log", xlim=(least, 1), ylim=(least, 1))
    axes.set_xlabel("false positives")
    axes.set_ylabel("true positives")
