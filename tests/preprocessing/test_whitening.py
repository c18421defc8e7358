"""ZCA by its algebra (formulas that need no oracle), against numpy and scikit-learn, and what it costs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from sightline.errors import DataError
from sightline.preprocessing import Preprocessing, Zca, fit_preprocessing, forecast_fit
from sightline.preprocessing.statistics import compute_all_directions, compute_leading_directions
from sightline.preprocessing.whitening import MAX_FULL_ZCA_VALUES, full_zca_cost, plan_zca

SHAPE = (4, 5, 3)
SIZE = 60
EPS = 0.01


def correlated(count=400, shape=SHAPE, seed=0) -> np.ndarray:
    """Images of neighbours alike, uint8 (N H W C): few strong directions and many weak ones."""
    rng = np.random.default_rng(seed)
    size = int(np.prod(shape))
    mixing = rng.normal(size=(size, size)) * (0.8 ** np.arange(size))
    return (
        np.clip(128 + 25 * rng.normal(size=(count, size)) @ mixing.T, 0, 255).astype(np.uint8).reshape(-1, *shape)
    )


def to_pixels(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def rows_of(images: np.ndarray) -> np.ndarray:
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1) / 255


def zca_of(images: np.ndarray, words: str) -> Zca:
    (step,) = fit_preprocessing(images, words, images.shape[3]).steps
    assert isinstance(step, Zca)
    return step


def decomposed(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and eigenvectors by numpy's SVD of the centred images: another way than ours."""
    rows = rows_of(images)
    _, singular, vectors = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    return singular**2 / len(rows), vectors.T


def plain_matrix(images: np.ndarray, eps: float) -> np.ndarray:
    variances, vectors = decomposed(images)
    return (vectors / np.sqrt(variances + eps)) @ vectors.T


def test_the_matrix_is_numpys_symmetric_and_positive():
    images = correlated()
    step = zca_of(images, f"zca:eps={EPS}")
    matrix = step.matrix.double().numpy()
    assert np.allclose(matrix, plain_matrix(images, EPS), atol=2e-5)
    assert np.allclose(matrix, matrix.T, atol=1e-6)
    assert np.linalg.eigvalsh(matrix).min() > 0
    assert np.allclose(step.mean.numpy(), rows_of(images).mean(0), atol=1e-6)


def test_whitening_equals_scikit_learns_pca():
    """Its PCA whitens by the variances alone and divides by n - 1; turned back by its own components."""
    images = correlated()
    oracle = PCA(whiten=True).fit(rows_of(images))
    seen = zca_of(images, "zca:eps=1e-9")(to_pixels(images)).flatten(1).numpy()
    plain = oracle.transform(rows_of(images)) @ oracle.components_ * np.sqrt(400 / 399)
    assert np.allclose(seen, plain, atol=5e-3)


@pytest.mark.parametrize(("eps", "near"), [(0.1, 1e-5), (0.001, 1e-4)])
def test_the_covariance_of_whitened_images_is_exact(eps, near):
    """U diag(s / (s + eps)) U^T."""
    images = correlated()
    seen = zca_of(images, f"zca:eps={eps}")(to_pixels(images)).flatten(1).double().numpy()
    variances, vectors = decomposed(images)
    assert np.allclose(np.cov(seen.T, bias=True), vectors * (variances / (variances + eps)) @ vectors.T, atol=near)


def test_the_covariance_is_the_identity_without_eps_and_with_full_rank():
    images = correlated()
    found = compute_all_directions(images, lambda pixels: pixels)  # in float64: the classifier's matrix is float32
    centred = to_pixels(images).flatten(1).double() - found.mean
    seen = centred @ (found.vectors * (found.variances + 1e-15).rsqrt()) @ found.vectors.T
    assert decomposed(images)[0].min() > 1e-7, "full rank"
    assert np.allclose(np.cov(seen.numpy().T, bias=True), np.eye(SIZE), atol=1e-6)


def test_a_huge_eps_only_scales():
    matrix = zca_of(correlated(), "zca:eps=1e8").matrix
    assert torch.allclose(matrix * 1e4, torch.eye(SIZE), atol=1e-6)


def test_of_all_whitenings_zca_is_nearest_to_the_images():
    images = correlated()
    pixels = to_pixels(images)
    step = zca_of(images, "zca:eps=1e-9")
    seen, centred = step(pixels).flatten(1), pixels.flatten(1) - step.mean
    rng = np.random.default_rng(1)
    for _ in range(5):
        turn = torch.from_numpy(np.linalg.qr(rng.normal(size=(SIZE, SIZE)))[0]).float()
        assert (seen @ turn - centred).square().sum() > (seen - centred).square().sum()


@pytest.mark.parametrize("words", ["zca:eps=0.01", "zca:eps=0.01:rank=12"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_inverse_undoes_whitening(words, layout):
    pixels = to_pixels(correlated()).contiguous(memory_format=layout)
    step, before = zca_of(correlated(), words), pixels.clone()
    seen = step(pixels)
    assert seen.is_contiguous(memory_format=layout)
    assert seen.dtype == pixels.dtype
    assert torch.allclose(step.inverse(seen), pixels, atol=1e-5)
    assert torch.equal(pixels, before)


def test_test_images_have_no_influence():
    """What is fitted to the training part is the same whatever else the store holds."""
    images = correlated(300)
    alone, among = images[:200].copy(), np.concatenate([images[:200], 255 - images[200:]])[:200]
    assert torch.equal(zca_of(alone, "zca").matrix, zca_of(among, "zca").matrix)
    other = zca_of(np.concatenate([images[:200], 255 - images[200:]]), "zca")
    assert not torch.allclose(zca_of(alone, "zca").matrix, other.matrix, atol=1e-3)


@pytest.mark.parametrize("words", ["zca:eps=0.1", "zca:eps=1e-4", "zca:eps=0.1:rank=5"])
def test_constant_pixels_give_nothing(words):
    images = correlated(100)
    images[:, 0] = 77
    images[:, 1] = 0
    seen = zca_of(images, words)(to_pixels(images))
    assert seen.isfinite().all()
    assert seen[:, :, :2].abs().max() < 1e-3
    assert seen[:, :, 2:].abs().max() > 0.1
    same = np.full((20, *SHAPE), 200, np.uint8)
    assert zca_of(same, words)(to_pixels(same)).abs().max() < 1e-3


def test_fewer_images_than_pixels():
    images = correlated(10)
    matrix = zca_of(images, "zca:eps=0.01").matrix
    assert torch.linalg.eigvalsh(matrix).max().item() == pytest.approx(10, rel=1e-3)  # 1 / sqrt(eps) where s is 0
    assert matrix.isfinite().all()


# Low rank.


def test_low_rank_with_all_directions_equals_the_full_matrix():
    images, pixels = correlated(), to_pixels(correlated())
    whole_one, low = zca_of(images, f"zca:eps={EPS}"), zca_of(images, f"zca:eps={EPS}:rank={SIZE}")
    assert low.rank == SIZE
    assert torch.allclose(low(pixels), whole_one(pixels), atol=1e-3)


def test_more_directions_come_nearer_to_the_whole():
    images, pixels = correlated(), to_pixels(correlated())
    seen = zca_of(images, f"zca:eps={EPS}")(pixels)
    errors = [
        (zca_of(images, f"zca:eps={EPS}:rank={k}")(pixels) - seen).square().mean().item() for k in (2, 8, 20)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.01 * seen.square().mean().item()


def test_the_leading_directions_are_numpys():
    images = correlated()
    variances, vectors = decomposed(images)
    found = compute_leading_directions(images, lambda pixels: pixels, 6)
    assert np.allclose(found.variances.numpy(), variances[:6], rtol=1e-4)
    cosines = np.abs((found.vectors.numpy() * vectors[:, :6]).sum(0))
    assert cosines.min() > 0.999
    assert found.residual_variance == pytest.approx(variances[6:].mean(), rel=1e-3)
    full = compute_all_directions(images, lambda pixels: pixels)
    assert np.allclose(full.variances.flip(0).numpy()[: len(variances)], variances, atol=1e-9)


def test_other_directions_are_scaled_by_their_mean_variance():
    """Total variance after whitening: each direction s / (s + eps), the rest as if all of their mean variance."""
    images = correlated()
    seen = zca_of(images, f"zca:eps={EPS}:rank=6")(to_pixels(images)).flatten(1).double()
    variances, _ = decomposed(images)
    rest = variances[6:]
    expected = (variances[:6] / (variances[:6] + EPS)).sum() + rest.sum() / (rest.mean() + EPS)
    assert seen.var(0, correction=0).sum().item() == pytest.approx(expected, rel=1e-3)


# As a step of a classifier.


@pytest.mark.parametrize("words", ["zca:eps=0.01", "gcn+zca:eps=0.1:rank=9", "fitted+zca"])
def test_it_is_rebuilt_exactly(words):
    made = fit_preprocessing(correlated(), words, 3)
    again = Preprocessing.from_config(json.loads(json.dumps(made.config())))
    again.load_state_dict(made.state_dict())
    pixels = to_pixels(correlated(8, seed=1))
    assert torch.equal(again(pixels), made(pixels))
    assert again.config() == made.config()


def test_gradients_reach_the_pixels():
    step = zca_of(correlated(), "zca:eps=0.01")
    weights = torch.randn(2, SIZE, generator=torch.Generator().manual_seed(0))
    pixels = to_pixels(correlated(2)).requires_grad_()
    (step(pixels).flatten(1) * weights).sum().backward()
    assert pixels.grad is not None
    assert torch.allclose(pixels.grad.flatten(1), weights @ step.matrix, atol=1e-4)


def test_it_stays_in_float32_under_autocast():
    step, pixels = zca_of(correlated(), "zca:eps=1e-4"), to_pixels(correlated())
    with torch.autocast("cpu", torch.bfloat16):
        seen = step(pixels)
    assert seen.dtype == torch.float32
    assert torch.equal(seen, step(pixels))


def test_images_do_not_influence_each_other():
    step, pixels = zca_of(correlated(), "zca"), to_pixels(correlated(6))
    assert torch.allclose(step(pixels)[2:3], step(pixels[2:3]), atol=1e-5)


def test_images_of_another_size_are_refused():
    with pytest.raises(DataError, match=r"3 x 5 x 4 .* 3 x 4 x 5"):
        zca_of(correlated(), "zca")(torch.rand(2, 3, 5, 4))


def test_nothing_to_measure():
    with pytest.raises(DataError, match="no training images"):
        fit_preprocessing(correlated(4)[:0], "zca", 3)


def test_images_are_read_in_chunks_and_evenly(monkeypatch):
    images = correlated(600)
    asked = []

    class Watched:
        def __len__(self):
            return len(images)

        def __getitem__(self, rows):
            asked.append(rows)
            return images[rows]

    monkeypatch.setattr("sightline.preprocessing.statistics.CHUNK_VALUES", 6000)
    monkeypatch.setattr("sightline.preprocessing.statistics.MAX_COVARIANCE_IMAGES", 250)
    found = compute_all_directions(Watched(), lambda pixels: pixels)
    assert len(asked) >= 3
    oracle = np.cov(rows_of(images[::3]).T, bias=True)
    ours = (found.vectors * found.variances) @ found.vectors.T
    assert np.allclose(ours.numpy(), oracle, atol=1e-9)
    low = compute_leading_directions(Watched(), lambda pixels: pixels, SIZE)
    assert np.allclose(((low.vectors * low.variances) @ low.vectors.T).numpy(), oracle, atol=1e-6)


# What it costs.


def test_the_full_matrix_is_used_up_to_the_limit():
    assert plan_zca(MAX_FULL_ZCA_VALUES, 1000).rank is None
    above = plan_zca(MAX_FULL_ZCA_VALUES + 1, 1000)
    assert above.rank == 512
    assert plan_zca(MAX_FULL_ZCA_VALUES + 1, 20).rank == 19
    assert plan_zca(100, 1000, rank=30).rank == 30
    assert plan_zca(100, 1000, rank=300).rank == 100


@pytest.mark.parametrize("size", [5000, 12_288, 150_528, 800_000])
def test_whitening_too_large_is_refused(size):
    for rank in (None, 10_000):
        cost = plan_zca(size, 50_000, rank)
        assert cost.rank is not None
        assert cost.stored <= full_zca_cost(MAX_FULL_ZCA_VALUES, 1).stored
        assert cost.memory < 1e9
        assert cost.memory < full_zca_cost(size, 50_000).memory


def test_the_forecast_names_method_and_cost():
    (text,) = forecast_fit("gcn+zca", (224, 224, 3), 50_000)
    assert "111 leading directions of 150,528" in text
    assert "725.1 GB" in text
    assert "--size 36" in text
    (text,) = forecast_fit("zca", (32, 32, 3), 50_000)
    assert "3,072 values" in text
    assert "38 MB stored" in text
    assert forecast_fit("gcn+fitted", (224, 224, 3), 50_000) == ()


def test_the_docs_quote_the_forecast():
    page = (Path(__file__).parents[2] / "docs" / "preprocessing.md").read_text(encoding="utf-8")
    assert forecast_fit("zca", (224, 224, 3), 50_000)[0] in page.replace("\n> ", " ")


def test_the_fit_notes_its_cost():
    images = np.random.default_rng(0).integers(0, 256, (30, 41, 41, 3), dtype=np.uint8)
    made = fit_preprocessing(images, "zca", 3)
    assert made.notes == forecast_fit("zca", (41, 41, 3), 30)
    assert made.steps[0].config()["rank"] == 29
    assert made(to_pixels(images)).isfinite().all()
    assert fit_preprocessing(correlated(), "fitted", 3).notes == ()


def test_cifar_pixels_are_decorrelated(shared_data):
    """On 400 real images at a quarter of their size: neighbours no longer tell each other."""
    import io
    import zipfile

    from PIL import Image

    with zipfile.ZipFile(shared_data / "cifar10_jpg.zip") as archive:
        members = [m for m in archive.namelist() if "train" in m and m.endswith(".jpg")][::125]
        images = np.stack([np.asarray(Image.open(io.BytesIO(archive.read(m))).resize((8, 8))) for m in members])
    rows = rows_of(images)
    seen = zca_of(images, "zca:eps=1e-4")(to_pixels(images)).flatten(1).numpy()
    before, after = (np.abs(np.corrcoef(r.T) - np.eye(192)).mean() for r in (rows, seen))
    assert before > 0.3
    assert after < 0.2 * before
