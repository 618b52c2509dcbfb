from drivetrain.testing import StrategyContract


class TestAverage(StrategyContract):
    strategy = "average"
