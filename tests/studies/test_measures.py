import pytest

from netprism.studies.measures import orders


def test_the_largest_and_the_mean_order_of_the_last_values(tmp_path):
    (tmp_path / "metrics.csv").write_text(
        "epoch,step,val/significance/4,val/significance/13,val/loss\n0,1,0.9,0.1,1\n1,2,0.2,0.6,1\n"
    )
    (row,) = orders(tmp_path)
    assert row == {"largest": 13, "mean": pytest.approx((4 * 0.2 + 13 * 0.6) / 0.8)}
    with pytest.raises(ValueError, match="no other/<order>; expected a run of a Disentangler"):
        orders(tmp_path, "other/")
