"""Every strategy once more: whole tensors, float64, plain loops. What the engine is tested against."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch

from mergestream.strategies._draws import draws

D = torch.float64
Taus = dict[str, torch.Tensor]  # weight → task vectors, float64 [T, *shape]


def by_weight(function):
    return lambda taus, **options: {name: function(t, name=name, **options) for name, t in taus.items()}


def magmax(t, name):
    best = t[0]
    for tau in t[1:]:
        best = torch.where(tau.abs() >= best.abs(), tau, best)
    return best


def weighted_average(t, name, weights=None):
    weights = weights or [1.0] * len(t)
    return sum(w * tau for w, tau in zip(weights, t, strict=True)) / sum(weights)


def ema(t, name, decay=0.5):
    mean = t[0]
    for tau in t[1:]:
        mean = decay * mean + (1 - decay) * tau
    return mean


def sign_max(t, name):
    sign = t.sum(0).sign()
    return sign * (t * sign).clamp(min=0).amax(0)


def random_mix(t, name, seed=5):
    chosen = [int(u) * len(t) >> 32 for u in draws(0, t[0].numel(), seed, name)]
    flat = t.reshape(len(t), -1)
    return torch.tensor([flat[c, i] for i, c in enumerate(chosen)], dtype=D).view(t.shape[1:])


def dropped(t, name, density, seed):
    kept = [draws(0, t[0].numel(), seed, name, i) / 2**32 < density for i in range(len(t))]
    return torch.stack([tau * torch.tensor(k).view(tau.shape) / density for tau, k in zip(t, kept, strict=True)])


def elected(t, majority=1.0):
    sign = t.sum(0).sign()
    sign = torch.where(sign == 0, majority, sign)
    agrees = t * sign > 0
    return torch.where(agrees, t, 0.0).sum(0) / agrees.sum(0).clamp(min=1)


def dare(t, name, density=0.5, seed=5):
    return dropped(t, name, density, seed).sum(0)


def dare_ties(t, name, density=0.5, seed=5):
    return elected(dropped(t, name, density, seed))


def breadcrumbs(t, name, density=0.9, outliers=0.01):
    n = t[0].numel()
    large = math.floor(outliers * n)
    small = max(0, n - large - max(1, math.floor(density * n)))
    total = torch.zeros_like(t[0])
    for tau in t:
        sizes = tau.abs().flatten().sort().values
        low, high = sizes[small], sizes[n - large - 1]
        total = total + torch.where((tau.abs() >= low) & (tau.abs() <= high), tau, 0.0)
    return total


def della(t, name, density=0.5, window=0.2, seed=5):
    rows = t.reshape(len(t), -1, t.shape[-1]) if t.dim() > 2 else t.reshape(len(t), 1, -1)
    result = rows.clone()
    for task in range(len(t)):
        drawn = (draws(0, t[0].numel(), seed, name, task) / 2**32).reshape(rows.shape[1:])
        for r, row in enumerate(rows[task]):
            order = sorted(range(len(row)), key=lambda i: (abs(float(row[i])), i))
            for rank, i in enumerate(order):
                chance = density - window / 2 + window * rank / max(1, len(row) - 1)
                result[task, r, i] = row[i] / chance if drawn[r, i] < chance else 0.0
    return elected(result).view(t.shape[1:])


def ties(taus, density=0.2, scope="all"):
    visual = [name for name in taus if name.startswith("visual.")]
    together = visual if scope == "encoder" and visual else list(taus)
    trimmed = {}
    for name, t in taus.items():
        ranked = [name] if scope == "tensor" else together
        flat = torch.cat([taus[n].abs().flatten(1) for n in ranked], 1)
        dropped = flat.shape[1] - int(density * flat.shape[1])
        limits = flat.sort(1).values[:, dropped - 1] if dropped else torch.zeros(len(flat), dtype=D)
        trimmed[name] = torch.where(t.abs() >= limits.view(-1, *[1] * (t.dim() - 1)), t, 0.0)
    voters = taus if scope == "tensor" else together
    votes = sum(float(trimmed[name].sum(0).sign().sum()) for name in voters)
    return {name: elected(t, 1.0 if votes >= 0 else -1.0) for name, t in trimmed.items()}


def slerp(taus):
    flat = torch.cat([t.flatten(1) for t in taus.values()], 1)
    mean = flat[0]
    for count, tau in enumerate(flat[1:], start=2):
        cosine = float(mean @ tau / (mean.norm() * tau.norm()))
        angle, share = math.acos(max(-1.0, min(1.0, cosine))), 1 / count
        if math.sin(angle) < 1e-6:
            mean = (1 - share) * mean + share * tau
        else:
            mean = (math.sin((1 - share) * angle) * mean + math.sin(share * angle) * tau) / math.sin(angle)
    sizes = [t[0].numel() for t in taus.values()]
    return {n: m.view(t.shape[1:]) for (n, t), m in zip(taus.items(), mean.split(sizes), strict=True)}


def model_stock(t, name):
    flat = t.flatten(1)
    pairs = [float(a @ b / (a.norm() * b.norm())) for a, b in itertools.combinations(flat, 2)]
    cosine = max(0.0, sum(pairs) / len(pairs)) if pairs else 1.0
    return len(t) * cosine / (1 + (len(t) - 1) * cosine) * t.mean(0)


def consensus(t, name, threshold=0.4, tasks=2):
    total, limits = t.sum(0), threshold if isinstance(threshold, list) else [threshold] * len(t)
    merged = torch.zeros_like(total).flatten()
    for p, value in enumerate(total.flatten()):
        used = sum(abs(tau.flatten()[p]) >= k * abs(value - tau.flatten()[p]) for tau, k in zip(t, limits, strict=True))
        merged[p] = value if used >= min(tasks, len(t)) else 0.0
    return merged.view(total.shape)


def metagpt(taus):
    squares = sum((t**2).flatten(1).sum(1) for t in taus.values())
    return {name: sum(s / squares.sum() * tau for s, tau in zip(squares, t, strict=True)) for name, t in taus.items()}


def on_matrices(function):
    def wrapped(t, name, **options):
        if len(t) == 1:
            return t[0]
        return function(t, **options) if t.dim() == 3 else t.mean(0)

    return by_weight(wrapped)


def polar(matrix):
    U, _, Vt = torch.linalg.svd(matrix, full_matrices=False)
    return U @ Vt


def tsv(t):
    rank = min(t.shape[1:])
    k = max(1, rank // len(t))
    parts = [torch.linalg.svd(tau, full_matrices=False) for tau in t]
    U = torch.cat([U[:, :k] for U, _, _ in parts], 1)[:, :rank]
    S = torch.cat([S[:k] for _, S, _ in parts])[:rank]
    V = torch.cat([Vt[:k] for _, _, Vt in parts])[:rank]
    return polar(U) @ torch.diag(S) @ polar(V)


def iso_c(t):
    return torch.linalg.svdvals(t.sum(0)).mean() * polar(t.sum(0))


def iso_cts(t, common=0.8):
    U, S, Vt = torch.linalg.svd(t.sum(0), full_matrices=False)
    per_task = round((len(S) - int(len(S) * common)) / len(t))
    k = max(0, len(S) - per_task * len(t))
    lefts, values, rights = [U[:, :k]], [S[:k]], [Vt[:k]]
    for tau in t:
        u, s, v = torch.linalg.svd(tau - U[:, :k] @ U[:, :k].T @ tau, full_matrices=False)
        lefts.append(u[:, :per_task])
        values.append(s[:per_task])
        rights.append(v[:per_task])
    left, right = torch.cat(lefts, 1)[:, : len(S)], torch.cat(rights)[: len(S)]
    return torch.cat(values)[: len(S)].mean() * polar(left) @ polar(right)


def knots(t, density=0.2):
    U, S, Vt = torch.linalg.svd(torch.cat(list(t), 1), full_matrices=False)
    parts = torch.stack(Vt.split(t.shape[2], dim=1))
    dropped = parts[0].numel() - math.floor(density * parts[0].numel())
    for part in parts:
        limit = part.abs().flatten().sort().values[dropped - 1] if dropped else -1.0
        part[part.abs() <= limit] = 0.0
    return U @ torch.diag(S) @ elected(parts)


def core_space(t, rule="iso_c", density=0.2, rank=None):
    lefts, rights = [], []
    for tau in t:
        U, S, Vt = torch.linalg.svd(tau, full_matrices=False)
        k = min(rank or len(S), len(S))
        lefts.append(U[:, :k] @ torch.diag(S[:k].sqrt()))
        rights.append(torch.diag(S[:k].sqrt()) @ Vt[:k])
    U = torch.linalg.svd(torch.cat(lefts, 1), full_matrices=False)[0]
    V = torch.linalg.svd(torch.cat(rights), full_matrices=False)[2].T
    cores = torch.stack([U.T @ tau @ V for tau in t])
    if rule == "ties":
        for core in cores:
            dropped = core.numel() - math.floor(density * core.numel())
            limit = core.abs().flatten().sort().values[dropped - 1] if dropped else -1.0
            core[core.abs() <= limit] = 0.0
        merged = elected(cores)
    elif rule == "average":
        merged = cores.mean(0)
    elif rule == "task_arithmetic":
        merged = cores.sum(0)
    else:
        merged = magmax(cores, "") if rule == "magmax" else {"tsv": tsv, "iso_c": iso_c}[rule](cores)
    return U @ merged @ V.T


def opcm(taus, alpha=0.5):
    """As published: the norms are restored after every task, not once."""
    names, count = list(taus), len(next(iter(taus.values())))
    merged = {name: taus[name][0] for name in names}

    def norm(vector):
        return math.sqrt(sum(float(v.square().sum()) for v in vector.values()))

    norms, factor = [norm(merged)], 1.0
    for task in range(1, count):
        tau = {name: taus[name][task] for name in names}
        norms.append(norm(tau))
        new = {}
        for name in names:
            clean = tau[name]
            if clean.dim() == 2:
                U, S, Vt = torch.linalg.svd(merged[name], full_matrices=True)
                inside = U.T @ clean @ Vt.T
                leading = int((S.cumsum(0) / S.sum() > alpha).float().argmax())
                inside.diagonal().zero_()
                inside[:leading, :leading] = 0
                clean = U @ inside @ Vt
            new[name] = factor * merged[name] + clean
        factor = norm(new) / np.mean(norms)
        merged = {name: value / factor for name, value in new.items()}
    return merged


def wudi(t, steps=300, lr=1e-5):
    merged = t.sum(0).clone().requires_grad_()
    optimizer = torch.optim.Adam([merged], lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = sum(((merged - tau) @ tau.T).square().sum() / tau.square().sum() for tau in t)
        loss.backward()
        optimizer.step()
    return merged.detach()


def dop(taus, **options):
    return {name: dop_of_weight(t, **options) for name, t in taus.items()}


def dop_of_weight(t, solver="mgda", variant="published", alpha=0.8, energy=0.99999, steps=200, lr=1e-4, decay=0.999):
    merged = t[0]
    for tau in t[1:]:
        start = (merged + tau) / 2
        if t.dim() == 3 and solver == "closed":
            merged = sylvester(start, merged, tau, alpha, energy, variant)
        elif t.dim() == 3:
            merged = dop_descent(
                start, merged, tau, alpha, energy, variant, steps, lr, decay if solver == "mgda" else 1
            )
        else:
            merged = start
    return merged


def dop_parts(X, energy, variant):
    U, S, Vt = torch.linalg.svd(X, full_matrices=False)
    k = int(torch.searchsorted(S.cumsum(0) / S.sum(), torch.tensor(energy, dtype=D))) + (variant == "corrected")
    return U[:, :k], S[:k] ** (1.0 if variant == "published" else 0.5), Vt[:k].T


def dop_loss(M, X, energy=0.99999, variant="published"):
    U, S, V = dop_parts(X, energy, variant)
    return (torch.diag(S) @ U.T @ (M - X)).square().sum() + ((M - X) @ V @ torch.diag(S)).square().sum()


def dop_descent(start, old, new, alpha, energy, variant, steps, lr, decay):
    M = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([M], lr=lr)
    for _ in range(steps):
        losses = [dop_loss(M, X, energy, variant) for X in (old, new)]
        g, h = (torch.autograd.grad(loss, M, retain_graph=True)[0] / loss.detach() for loss in losses)
        if min(loss.item() for loss in losses) > 0:
            line = float(((h - g) * h).sum() / (g - h).square().sum())  # of the shortest vector on the line
            alpha = decay * alpha + (1 - decay) * (line if 0 < line < 1 else 0.001 if line <= 0 else 0.999)
        optimizer.zero_grad()
        (alpha * losses[0] + (1 - alpha) * losses[1]).backward()
        optimizer.step()
    return M.detach()


def sylvester(start, old, new, alpha, energy, variant):
    rows, columns = start.shape
    matrix, target = torch.zeros(rows * columns, rows * columns, dtype=D), torch.zeros(rows * columns, dtype=D)
    for weight, X in ((alpha, old), (1 - alpha, new)):
        U, S, V = dop_parts(X, energy, variant)
        left, right = U @ torch.diag(S**2) @ U.T, V @ torch.diag(S**2) @ V.T
        system = torch.kron(left, torch.eye(columns, dtype=D)) + torch.kron(torch.eye(rows, dtype=D), right)
        matrix += weight * system
        target += weight * system @ (X - start).flatten()
    return start + (torch.linalg.pinv(matrix, hermitian=True, rtol=1e-12) @ target).view(rows, columns)


def nufilt(taus, variant="published", layers=None, null_rank=128, task_rank=8, rank=64, steps=50, lr=1e-3, seed=5):
    def leading(matrix, count):
        _, S, Vt = torch.linalg.svd(matrix, full_matrices=False)
        return Vt[: min(count, int((S / S[0] > 1e-6).sum()))].T

    result = {}
    for name, t in taus.items():
        result[name] = torch.zeros(t.shape[1:], dtype=D)
        if t.dim() != 3 or not any(part in name for part in layers or ["attn.", "c_fc", "fc1"]):
            continue
        n = t.shape[2]
        for task, tau in enumerate(t):
            M, V = result[name], leading(result[name], null_rank)
            if float(M.abs().max()) == 0:
                V = torch.eye(n, dtype=D)[:, : null_rank if variant == "published" else 0]
            P, V_task = torch.eye(n, dtype=D) - V @ V.T, leading(tau, task_rank)
            u = (torch.tensor(draws(0, rank * n, seed, name, task).astype(np.float64)) + 0.5) / 2**32
            A = (0.02 * math.sqrt(2) * torch.erfinv(2 * u - 1)).view(rank, n).requires_grad_()
            B = torch.zeros(n, rank, dtype=D, requires_grad=True)
            optimizer = torch.optim.Adam([A, B], lr=lr)
            for _ in range(steps if task else 0):
                optimizer.zero_grad()
                new = M + tau @ (P + B @ A)
                (((tau - new) @ V_task).square().sum() + ((M - new) @ V).square().sum()).backward()
                optimizer.step()
            result[name] = (M + tau @ (P + B @ A)).detach()
    return result


def curved(function):
    """A reference that takes the curvature of each task, float64, by weight: made by `curvature_of`."""
    return lambda taus, **options: function(taus, curvature_of(taus, function.__name__), **options)


def curvature_of(taus: Taus, strategy: str) -> Taus:
    """The Fisher information or the Gram matrices of tasks, drawn for a test."""
    generator, found = torch.Generator().manual_seed(3), {}
    for name, t in taus.items():
        if strategy == "regmean" and t.dim() == 3:
            rows = torch.randn(len(t), 4, t.shape[2], generator=generator)
            rows[:, :, :1] = 0  # an input that no task uses
            found[name] = (rows.transpose(1, 2) @ rows).double()
        elif strategy != "regmean":
            found[name] = (torch.rand(t.shape, generator=generator) ** 8).double()
    return found


@curved
def fisher(taus, fishers, floor=1e-6):
    merged = {}
    for name, t in taus.items():
        weights = fishers[name].float().double().clamp(min=floor)
        merged[name] = (weights * t).sum(0) / weights.sum(0)
    return merged


@curved
def laplace(taus, fishers):
    merged = {name: t[0].clone() for name, t in taus.items()}
    for k in range(1, len(next(iter(taus.values())))):
        d = {name: t[k] - merged[name] for name, t in taus.items()}
        new = sum((fishers[name][k] * d[name] ** 2).sum() for name in taus)
        old = sum((fishers[name][:k].sum(0) * d[name] ** 2).sum() for name in taus)
        merged = {name: merged[name] + new / (new + old) * d[name] for name in taus}
    return merged


@curved
def regmean(taus, grams, shrink=0.95):
    merged = {}
    for name, t in taus.items():
        if name not in grams:
            merged[name] = t.mean(0)
            continue
        regular = [shrink * g + (1 - shrink) * torch.diag(g.diagonal()) for g in grams[name]]
        solution = torch.linalg.pinv(sum(regular)) @ sum(g @ tau.T for g, tau in zip(regular, t, strict=True))
        merged[name] = solution.T.clone()
        merged[name][:, 0] = t.mean(0)[:, 0]
    return merged


REFERENCES = {
    "magmax": by_weight(magmax),
    "average": by_weight(lambda t, name: t.mean(0)),
    "task_arithmetic": by_weight(lambda t, name: t.sum(0)),
    "weighted_average": by_weight(weighted_average),
    "ema": by_weight(ema),
    "sign_max": by_weight(sign_max),
    "random_mix": by_weight(random_mix),
    "dare": by_weight(dare),
    "dare_ties": by_weight(dare_ties),
    "breadcrumbs": by_weight(breadcrumbs),
    "della": by_weight(della),
    "ties": ties,
    "slerp": slerp,
    "model_stock": by_weight(model_stock),
    "consensus": by_weight(consensus),
    "metagpt": metagpt,
    "tsv": on_matrices(tsv),
    "iso_c": on_matrices(iso_c),
    "iso_cts": on_matrices(iso_cts),
    "knots": on_matrices(knots),
    "core_space": on_matrices(core_space),
    "opcm": opcm,
    "wudi": on_matrices(wudi),
    "dop": dop,
    "nufilt": nufilt,
    "fisher": fisher,
    "laplace": laplace,
    "regmean": regmean,
}


def svc(merged, taus, alpha, coefficient):
    """One direction after the other, with the whole response of M, not σ_r v_r."""
    result = {}
    for name, tau in merged.items():
        result[name] = M = coefficient * tau
        if M.dim() != 2 or "embed" in name or "text_projection" in name:
            continue
        U, S, Vt = torch.linalg.svd(M, full_matrices=False)
        if len(S) > 1 and S[0] - S[-1] < 1e-9 * S[0]:  # M is an isometry: its directions are those of the sum
            isometry, summed = M / S[0], taus[name].sum(0)
            if len(M) <= len(M.T):
                U = torch.linalg.eigh(summed @ isometry.T + isometry @ summed.T).eigenvectors
                Vt = U.T @ isometry
            else:
                Vt = torch.linalg.eigh(isometry.T @ summed + summed.T @ isometry).eigenvectors.T
                U = isometry @ Vt.T
        total = torch.zeros_like(M)
        for r in range(len(S)):
            u, counts = U[:, r], 0.0
            for t in taus[name]:
                response = u @ t
                square = float(response @ response)
                s = float((u @ M) @ response) / square if square > 1e-20 else 0.0
                counts += max(alpha, s)
            total = total + S[r] * len(taus[name]) / counts * torch.outer(u, Vt[r])
        result[name] = total
    return result


def lines(merged, taus, beta, blocks):
    """`blocks` maps each weight to (l, L); weights outside of the blocks are not in it."""
    tasks = len(next(iter(taus.values())))
    of_sum = sum(float(t.sum(0).abs().sum()) for t in taus.values())
    alpha = of_sum / tasks / sum(float(tau.abs().sum()) for tau in merged.values())
    scales = {name: alpha + beta * blocks[name][0] / (blocks[name][1] - 1) for name in blocks}
    return {name: scales.get(name, alpha) * tau for name, tau in merged.items()}


def align(merged: Taus, base: torch.Tensor, tasks: list[Taus], which: str, coefficient: float, **how: float) -> Taus:
    """The projection is trained by autograd on features that are drawn one by one; `how`: steps, rate, seed."""
    start = base.double() + coefficient * merged["proj"].double()
    images = sum(int(task["count"].sum()) for task in tasks)
    scatter = sum(task[f"{which}.scatter"].double() * int(task["count"].sum()) for task in tasks) / images
    factor = torch.linalg.cholesky(scatter + 1e-4 * scatter.trace() / len(scatter) * torch.eye(len(scatter)))
    pairs = [
        (int(c), mean.double())
        for task in tasks
        for c, mean in zip(task["classes"], task[f"{which}.mean"], strict=True)
    ]
    text = {int(c): e.double() for task in tasks for c, e in zip(task["classes"], task["text"], strict=True)}
    pairs.sort(key=lambda pair: pair[0])
    known, scale = sorted(text), float(tasks[0]["scale"])
    generator, projection = torch.Generator().manual_seed(how["seed"]), start.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([projection], lr=how["rate"] * float(start.square().mean().sqrt()))
    for _ in range(how["steps"]):
        drawn = torch.randint(len(pairs), (256,), generator=generator)
        noise = torch.randn(256, len(scatter), generator=generator, dtype=torch.float64)
        losses = []
        for i, z in zip(drawn.tolist(), noise, strict=True):
            c, mean = pairs[i]
            f = (mean + factor @ z) @ projection
            logits = torch.stack([scale * f @ text[k] / f.norm() for k in known])
            losses.append(torch.logsumexp(logits, 0) - logits[known.index(c)])
        optimizer.zero_grad()
        (sum(losses) / len(losses)).backward()
        optimizer.step()
    return {n: projection.detach() - base if n == "proj" else coefficient * tau for n, tau in merged.items()}


CALIBRATIONS = {"svc": svc, "lines": lines, "align": align}
