"""The lab: a nested machine with no special hardware, where real vfio-pci, KVM irqfds and QEMU deliver INTx.

    L0  this machine  QEMU, TCG, emulating an AMD CPU with SVM, an Intel IOMMU, PCI devices with an INTx pin
     └─ L1  the host  a Debian kernel with kvm-amd and vfio-pci; its root is L0's root, writes go to memory
         └─ L2  guest QEMU -accel kvm -device vfio-pci: the same kernel, busybox and the e1000 driver

`packages` brings Debian packages and the lab's kernels, `host` boots L1 and runs a script there, `guest`
(in L1) runs one guest, `truth` reads what is true about it, `scenario` (in L1) runs guests in turn with a recorder
around them.

    python -m tests.lab run --out DIR [--kernel 6.1] [--guests kernel,pair-kernel] [--recorder 'ARGV...']
    python -m tests.lab shell-script FILE [--share DIR]     # boots L1, runs FILE in it; $SHARE is DIR
    python -m tests.lab findings --out DIR [--kernel 6.1]   # what is wrong is named, and what devices says is so
    $PYTHON -m tests.lab.guest kernel $SHARE/guest          # in such a script: one guest
"""
