"""Published weights of the methods."""

PROTOCOLS: dict[str, dict[str, float]] = dict(
    crd=dict(FitNet=100.0, AT=1000.0, SP=3000.0, CC=0.02, VID=1.0, RKD=1.0, PKT=30000.0, AB=0.0, FT=200.0,
             FSP=0.0, NST=50.0, CRD=0.8, KDSVD=1.0),
    sakd=dict(FitNet=1.0, AT=1000.0, SP=3000.0, CC=0.02, VID=1.0, RKD=1.0, PKT=30000.0, AB=0.0, FT=200.0,
              FSP=0.0, NST=50.0, CRD=0.8, KDSVD=1.0))
"""The weights of two published comparisons of classifiers, by the name of the method.

``crd`` is the comparison of Tian et al. (ICLR 2020), in which a feature method is the only addition to the
task loss; ``sakd`` is the comparison of SAKD (IEEE TIP 2022), in which ``KD`` with weight 1 accompanies every
method.
"""
