"""Bicubic resizing against torch."""

import numpy as np
import pytest

from flashjax.ops.resize import resize_bicubic

torch = pytest.importorskip("torch", reason="parity needs the extra: pip install 'flashjax[parity]'")


@pytest.mark.parametrize(
    ("source", "target"), [((13, 13), (23, 23)), ((23, 23), (13, 13)), ((13, 13), (47, 47)), ((6, 9), (11, 4))]
)
def test_bicubic_equals_torch(source, target):
    image = np.random.default_rng(0).normal(size=(*source, 5)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(image).permute(2, 0, 1)[None], size=target, mode="bicubic", align_corners=False
    )
    np.testing.assert_allclose(resize_bicubic(image, target), expected[0].permute(1, 2, 0), atol=1e-5)
