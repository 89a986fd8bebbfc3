import numpy as np

from data.toys import regions


def test_a_task_follows_from_its_number_and_three_places_follow_another_rule():
    one, again = regions.task(7, support=16, query=32), regions.task(7, support=16, query=32)
    assert all((one[name] == again[name]).all() for name in one)
    assert one["is_odd"].sum() == regions.ODD and one["support_x"].shape == (9, 16, 8)
    mean_S = one["query_x"][..., -1].mean(1)
    assert mean_S[one["is_odd"]].min() > 0.6 > mean_S[~one["is_odd"]].max()
    west, south, east, north = regions.box(7)
    assert (one["query_xy"] >= [west, south]).all() and (one["query_xy"] <= [east, north]).all()
    for place in range(9):
        box = regions.place_box(7, place)
        inside = one["query_xy"][place]
        assert (inside >= np.array(box[:2]) - 1e-9).all() and (inside <= np.array(box[2:]) + 1e-9).all()


def test_labels_of_odd_places_follow_flipped_signs():
    # a least-squares fit on the other places predicts labels there, and fails where four signs are flipped
    right = {True: [], False: []}
    for number in range(6):
        made = regions.task(number, support=16, query=200)
        x, y, odd = made["query_x"].astype(float), made["query_y"] * 2.0 - 1, made["is_odd"]
        w = np.linalg.lstsq(x[~odd].reshape(-1, 8), y[~odd].ravel(), rcond=None)[0]
        for is_odd in (True, False):
            right[is_odd].append(((x[odd == is_odd] @ w > 0) == (y[odd == is_odd] > 0)).mean())
    assert np.mean(right[False]) > 0.8 > 0.7 > np.mean(right[True])


def test_fresh_batches_never_hold_the_tasks_of_a_test():
    test = [n for batch in regions.batches(num_tasks=5, batch_size=3, support=2, query=2) for n in batch["task"]]
    assert test[:5] == [0, 1, 2, 3, 4]
    fresh = regions.batches(first=5, batch_size=4, support=2, query=2)
    seen = np.concatenate([next(fresh)["task"] for _ in range(20)])
    assert seen.min() >= 5 and len(np.unique(seen)) == len(seen)
