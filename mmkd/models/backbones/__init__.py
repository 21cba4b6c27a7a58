from .mobilenet import CRDMobileNetV2, MobileNetV1
from .preact_resnet import PreActResNet
from .resnet import CRDResNet, CRDResNet50
from .shufflenet import CRDShuffleNetV1, CRDShuffleNetV2
from .staged import Staged
from .vgg import CRDVGG
from .wide_resnet import CRDWideResNet

__all__ = [
    'CRDVGG', 'CRDMobileNetV2', 'CRDResNet', 'CRDResNet50', 'CRDShuffleNetV1', 'CRDShuffleNetV2',
    'CRDWideResNet', 'MobileNetV1', 'PreActResNet', 'Staged'
]
