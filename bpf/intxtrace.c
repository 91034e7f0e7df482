// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * The probes. Compiled by bcc; no kernel header beyond those that bcc itself includes.
 *
 * In front of this file intxtrace/capture/plan.py puts: the kinds, flags and `struct record` made
 * from intxtrace/events.py; OFF_* structure offsets from the kernel's BTF; FN_* addresses from kallsyms; and
 * RING_PAGES, PROGRAMS, QEMU_PROGRAMS, HANDLER_GETS_IRQ_CTX and COUNT_BAR_ACCESS (or every access is an event).
 * Behind it: one wrapper per attached probe, which takes the arguments out of an fentry, kprobe, raw tracepoint or
 * uprobe context and calls the on_*() function, between run_begin() and run_end().
 *
 * What is recorded: calls on a vfio device that is not refused, and calls on the eventfds, irqfds, GSIs and VMs that
 * one of these taught us. Everything else returns before it touches the ring.
 */

struct device {
  u64 trigger; /* eventfd_ctx that the handler signals */
  u32 address; /* domain << 16 | bus << 8 | devfn */
  u32 refused;
};
struct line {
  u64 vm;
  u64 gsi;
};
/* Why a line is known. QEMU 10.0 gives a device's irqfd to GSI 0, the timer's, until the guest routes its pin. */
struct line_use {
  u32 irqfds; /* of known devices, now */
  u32 used;   /* an interrupt of a known device went over it, or may have before the trace */
};
/* A traced call that is open in a task (or, for idle tasks, on a CPU). */
struct frame {
  u64 device, link, link2, vm, arg0, arg1;
  u32 flag; /* FLAG_IN_* */
  u32 aux;
};
#define DEPTH 4
struct stack {
  u64 qemu;                  /* the VFIODevice that this task served last in QEMU */
  u32 depth;
  u32 serving;               /* QEMU's main loop: 1 in vfio_intx_interrupt, 2 it read a known eventfd */
  u64 pulse_vm, pulse_gsi;   /* an irqfd without resampler was woken: the MSI that follows is its injection */
  struct frame frames[DEPTH];
};
/* A VFIODevice in a QEMU process. */
struct qemu_key {
  u64 device;
  u64 tgid;
};
struct bar_count {
  u64 reads, writes;
  u64 fresh; /* no access yet since the interrupt */
};
struct offset_key {
  u64 device, region, offset;
  u32 tgid;
  u32 number; /* region number | 1 << 31 for writes */
};
struct vector_key {
  u32 tgid;
  u32 vector;
};
struct binary {
  u64 device; /* offset of VFIODevice in VFIOPCIDevice */
  u64 pending; /* offset of the pending flag from the EOI function's argument, 0: every call is real */
};
/* The runs of a program that concerned somebody who is traced: how many, and how long the latest took. */
#define SAMPLES 32
struct cost {
  u64 runs;
  u64 ns[SAMPLES];
};
#define BINARIES 64
#define TIMED_BINARIES 8
BPF_RINGBUF_OUTPUT(events, RING_PAGES);
BPF_PERCPU_ARRAY(losses, u64, 64); /* by kind */
BPF_ARRAY(lost_total, u64, 1);
BPF_HASH(devices, u64, struct device, 1024);
BPF_HASH(refused_addresses, u32, u32, 1024);
BPF_HASH(refused_tgids, u32, u32, 4096);
BPF_HASH(refused_qemu, struct qemu_key, u32, 4096);
BPF_HASH(contexts, u64, u64, 4096);
BPF_HASH(lines, struct line, struct line_use, 4096);
BPF_HASH(gsis, u32, u32, 4096);
BPF_HASH(vms, u64, u64, 1024);
BPF_HASH(vm_of, u32, u64, 1024);
BPF_HASH(vectors, struct vector_key, u64, 4096);
BPF_TABLE("lru_hash", u64, struct stack, stacks, 16384);
BPF_ARRAY(empty_stack, struct stack, 1);
BPF_HASH(bars, struct qemu_key, struct bar_count, 4096);
BPF_HASH(offsets, struct offset_key, u64, 8192); /* full: accesses at further offsets are in the totals alone */
BPF_ARRAY(binaries, struct binary, BINARIES);
BPF_ARRAY(timing, u32, 1); /* 1: the programs are timed */
BPF_PERCPU_ARRAY(costs, struct cost, PROGRAMS + (TIMED_BINARIES - 1) * QEMU_PROGRAMS);

struct fields {
  u64 device, link, link2, vm, arg0, arg1;
  s32 value;
  u32 aux;
};

/* ---- what the programs cost ---- */

static __always_inline u64 run_begin(void) {
  int zero = 0;
  u32 *on = timing.lookup(&zero);
  return on && *on ? bpf_ktime_get_ns() : 0;
}

/* Other runs (of other eventfds, other VMs) are many, short, and not what an interrupt pays. */
static __always_inline void run_end(u64 began, int concerned, int program) {
  if (!began || !concerned)
    return;
  struct cost *cost = costs.lookup(&program);
  if (cost)
    cost->ns[cost->runs++ & (SAMPLES - 1)] = bpf_ktime_get_ns() - began;
}

/* Makes an event; 1, which the on_*() functions return where the run concerned somebody who is traced. */
static __always_inline int emit(u32 kind, u32 flags, const struct fields *f) {
  struct record *r = events.ringbuf_reserve(sizeof(struct record));
  if (!r) {
    int slot = kind & 63, zero = 0;
    u64 *n = losses.lookup(&slot), *total = lost_total.lookup(&zero);
    if (n && total) {
      ++*n;
      lock_xadd(total, 1);
    }
    return 1;
  }
  u64 id = bpf_get_current_pid_tgid();
  r->kind = kind;
  r->cpu = bpf_get_smp_processor_id();
  r->flags = flags;
  r->tgid = id >> 32;
  r->tid = (u32)id;
  r->value = f->value;
  r->aux = f->aux;
  r->device = f->device;
  r->link = f->link;
  r->link2 = f->link2;
  r->vm = f->vm;
  r->arg0 = f->arg0;
  r->arg1 = f->arg1;
  /* After the reserve: what is reserved later has a later time than the drain's look at the producer position. */
  r->ts = bpf_ktime_get_ns();
  events.ringbuf_submit(r, 1 /* BPF_RB_NO_WAKEUP: the drain polls */);
  return 1;
}

static __always_inline u64 read64(u64 address) {
  u64 value = 0;
  bpf_probe_read_kernel(&value, sizeof(value), (void *)address);
  return value;
}
static __always_inline u32 read32(u64 address) {
  u32 value = 0;
  bpf_probe_read_kernel(&value, sizeof(value), (void *)address);
  return value;
}
static __always_inline u64 read_user64(u64 address) {
  u64 value = 0;
  bpf_probe_read_user(&value, sizeof(value), (void *)address);
  return value;
}
static __always_inline u8 read_user8(u64 address) {
  u8 value = 0;
  bpf_probe_read_user(&value, sizeof(value), (void *)address);
  return value;
}

/* ---- open calls ---- */

static __always_inline u64 stack_key(void) {
  u32 tid = (u32)bpf_get_current_pid_tgid();
  return tid ? tid : 1ull << 32 | bpf_get_smp_processor_id();
}

static __always_inline struct stack *stack_find(void) {
  u64 key = stack_key();
  return stacks.lookup(&key);
}

static __always_inline struct stack *stack_make(void) {
  u64 key = stack_key();
  struct stack *s = stacks.lookup(&key);
  if (s)
    return s;
  int zero = 0;
  struct stack *empty = empty_stack.lookup(&zero);
  if (!empty)
    return 0;
  stacks.update(&key, empty);
  return stacks.lookup(&key);
}

static __always_inline struct frame *innermost(struct stack *s) {
  if (!s || !s->depth)
    return 0;
  return &s->frames[(s->depth - 1) & (DEPTH - 1)];
}

/* The innermost open call, if it is of this sort. */
static __always_inline struct frame *inside(struct stack *s, u32 flag) {
  struct frame *f = innermost(s);
  return f && f->flag == flag ? f : 0;
}

static __always_inline void push(struct stack *s, u32 flag, const struct fields *v) {
  if (!s)
    return;
  /* These calls never nest in themselves: the same sort on top means that its return was missed. */
  if (!inside(s, flag) && s->depth < DEPTH)
    s->depth++;
  struct frame *f = innermost(s);
  if (!f)
    return;
  f->device = v->device;
  f->link = v->link;
  f->link2 = v->link2;
  f->vm = v->vm;
  f->arg0 = v->arg0;
  f->arg1 = v->arg1;
  f->aux = v->aux;
  f->flag = flag;
}

static __always_inline void pop(struct stack *s) {
  if (s->depth)
    s->depth--;
  s->pulse_vm = 0;
}

static __always_inline void restore(struct fields *v, const struct frame *f) {
  v->device = f->device;
  v->link = f->link;
  v->link2 = f->link2;
  v->vm = f->vm;
  v->arg0 = f->arg0;
  v->arg1 = f->arg1;
  v->aux = f->aux;
}

/* Ends the innermost call of this sort: its fields, with the return value, as one event. */
static __always_inline int leave(u32 flag, u32 kind, s32 ret) {
  struct stack *s = stack_find();
  struct frame *f = inside(s, flag);
  if (!f)
    return 0;
  struct fields v = {};
  restore(&v, f);
  v.value = ret;
  pop(s);
  f = innermost(s);
  return emit(kind, f ? f->flag : 0, &v);
}

/* ---- what is traced ---- */

static __always_inline u32 pci_address(u64 vdev) {
  u64 pdev = read64(vdev + OFF_vfio_pci_core_device_pdev);
  u64 bus = read64(pdev + OFF_pci_dev_bus);
  u32 devfn = read32(pdev + OFF_pci_dev_devfn);
  u8 number = 0;
  bpf_probe_read_kernel(&number, sizeof(number), (void *)(bus + OFF_pci_bus_number));
#ifdef OFF_pci_sysdata_domain
  u32 domain = read32(read64(bus + OFF_pci_bus_sysdata) + OFF_pci_sysdata_domain);
#else
  u32 domain = read32(bus + OFF_pci_bus_domain_nr);
#endif
  return domain << 16 | (u32)number << 8 | (devfn & 0xff);
}

static __always_inline struct device *device_make(u64 vdev, u64 irq) {
  struct device made = {};
  made.address = pci_address(vdev);
  if (refused_addresses.lookup(&made.address))
    made.refused = 1;
  devices.update(&vdev, &made);
  if (!made.refused) {
    struct fields v = {.device = vdev, .arg0 = made.address, .arg1 = irq, .value = 1};
    emit(KIND_DEVICE, 0, &v);
  }
  return devices.lookup(&vdev);
}

static __always_inline int device_refused(u64 vdev) {
  struct device *d = devices.lookup(&vdev);
  return d && d->refused;
}

/* The traced device behind a vdev, or nothing. Made where a device shows itself first; elsewhere its code would only
 * make compiling slower. */
static __always_inline struct device *device_of(u64 vdev, u64 irq) {
  struct device *d = devices.lookup(&vdev);
  if (!d)
    d = device_make(vdev, irq);
  return d && !d->refused ? d : 0;
}

/* The vdev that a known eventfd belongs to, or nothing: not known, or its device is refused. */
static __always_inline u64 *context_device(u64 ctx) {
  u64 *vdev = contexts.lookup(&ctx);
  if (!vdev)
    return 0;
  struct device *d = devices.lookup(vdev);
  return d && d->refused ? 0 : vdev;
}

static __always_inline int vm_refused(u64 vm) {
  u64 *tgid = vms.lookup(&vm);
  if (!tgid)
    return 0;
  u32 pid = *tgid;
  return refused_tgids.lookup(&pid) != 0;
}

/* The same, where a VM first shows that it has a line of ours. */
static __always_inline int vm_meet(u64 vm) {
  u32 pid;
  u64 *tgid = vms.lookup(&vm);
  if (tgid) {
    pid = *tgid;
  } else {
    u64 made = pid = read32(vm + OFF_kvm_userspace_pid); /* the process that created it */
    vms.update(&vm, &made);
    vm_of.update(&pid, &vm);
  }
  if (refused_tgids.lookup(&pid))
    return 1;
  if (!tgid) {
    struct fields v = {.vm = vm, .value = 1, .aux = pid};
    emit(KIND_VM, 0, &v);
  }
  return 0;
}

static __always_inline int process_refused(void) {
  u32 tgid = bpf_get_current_pid_tgid() >> 32;
  return refused_tgids.lookup(&tgid) != 0;
}

static __always_inline int qemu_refused(u64 device) {
  struct qemu_key key = {.device = device, .tgid = bpf_get_current_pid_tgid() >> 32};
  return process_refused() || refused_qemu.lookup(&key) != 0;
}

/* QEMU calls the ioctl for the VFIODevice whose function this task ran last: it is refused or taken with its vdev. */
static __always_inline void qemu_judge(int refused) {
  u64 key = stack_key();
  struct stack *s = stacks.lookup(&key);
  if (!s || !s->qemu)
    return;
  struct qemu_key device = {.device = s->qemu, .tgid = bpf_get_current_pid_tgid() >> 32};
  u32 one = 1;
  if (refused)
    refused_qemu.update(&device, &one);
  else
    refused_qemu.delete(&device);
}

static __always_inline struct line_use *line_make(u64 vm, u64 gsi) {
  struct line l = {.vm = vm, .gsi = gsi};
  struct line_use none = {};
  u32 g = gsi, one = 1;
  gsis.update(&g, &one);
  return lines.lookup_or_try_init(&l, &none);
}

/* An interrupt went over it: the line stays known, whatever comes of the irqfd. */
static __always_inline void line_learn(u64 vm, u64 gsi) {
  struct line_use *use = line_make(vm, gsi);
  if (use)
    use->used = 1;
}

static __always_inline void line_assign(u64 vm, u64 gsi) {
  struct line_use *use = line_make(vm, gsi);
  if (use)
    __sync_fetch_and_add(&use->irqfds, 1);
}

/* A line that lost its last irqfd before it carried anything is somebody else's. */
static __always_inline void line_release(u64 vm, u64 gsi) {
  struct line l = {.vm = vm, .gsi = gsi};
  struct line_use *use = lines.lookup(&l);
  if (!use || !use->irqfds)
    return;
  __sync_fetch_and_add(&use->irqfds, -1);
  if (!use->irqfds && !use->used)
    lines.delete(&l);
}

static __always_inline int line_known(u64 vm, u64 gsi) {
  struct line l = {.vm = vm, .gsi = gsi};
  return lines.lookup(&l) != 0;
}

/* The eventfd_ctx behind a file descriptor of the current task. */
static __always_inline u64 context_of_fd(u32 fd) {
  u64 files = read64(bpf_get_current_task() + OFF_task_struct_files);
  u64 fdt = read64(files + OFF_files_struct_fdt);
  if (fd >= read32(fdt + OFF_fdtable_max_fds))
    return 0;
  u64 file = read64(read64(fdt + OFF_fdtable_fd) + 8ull * fd);
  return file ? read64(file + OFF_file_private_data) : 0;
}

/* ---- vfio ---- */

static __always_inline int on_handler_entry(u64 irq, u64 dev_id) {
  u64 vdev = dev_id;
#if HANDLER_GETS_IRQ_CTX
  vdev = read64(dev_id + OFF_vfio_pci_irq_ctx_vdev);
#endif
  if (!device_of(vdev, (u32)irq))
    return 0;
  struct fields v = {.device = vdev, .arg0 = (u32)irq};
  push(stack_make(), FLAG_IN_HANDLER, &v);
  return emit(KIND_HANDLER_ENTRY, 0, &v);
}

static __always_inline int on_handler_exit(u64 ret) {
  return leave(FLAG_IN_HANDLER, KIND_HANDLER_EXIT, ret);
}

#ifdef OFF_irqaction_name
/* Instead of vfio_intx_handler: irq:irq_handler_entry(irq, action), whose dev_id is the handler's. */
static __always_inline int is_intx_action(u64 action) {
  char name[10] = {};
  bpf_probe_read_kernel(&name, sizeof(name) - 1, (void *)read64(action + OFF_irqaction_name));
  return name[0] == 'v' && name[1] == 'f' && name[2] == 'i' && name[3] == 'o' && name[4] == '-' && name[5] == 'i' &&
         name[6] == 'n' && name[7] == 't' && name[8] == 'x';
}

static __always_inline int on_irq_handler_entry(u64 irq, u64 action) {
  if (!is_intx_action(action))
    return 0;
  return on_handler_entry(irq, read64(action + OFF_irqaction_dev_id));
}

static __always_inline int on_irq_handler_exit(u64 irq, u64 action, u64 ret) {
  return is_intx_action(action) ? on_handler_exit(ret) : 0;
}
#endif

static __always_inline int on_unmask_entry(u64 vdev) {
  if (!device_of(vdev, 0))
    return 0;
  struct stack *s = stack_make();
  struct frame *outer = innermost(s);
  u32 flags = outer ? outer->flag : 0;
  struct fields v = {.device = vdev};
  push(s, FLAG_IN_UNMASK, &v);
  return emit(KIND_UNMASK_ENTRY, flags, &v);
}

static __always_inline int on_unmask_exit(u64 ret) {
  return leave(FLAG_IN_UNMASK, KIND_UNMASK_EXIT, ret);
}

static __always_inline int on_checked_unmask(u64 ret) {
  struct frame *f = inside(stack_find(), FLAG_IN_UNMASK);
  if (!f)
    return 0;
  struct fields v = {.device = f->device, .value = (u8)ret};
  return emit(KIND_CHECKED_UNMASK, FLAG_IN_UNMASK, &v);
}

static __always_inline int on_enable_irq(u64 irq) {
  struct frame *f = inside(stack_find(), FLAG_IN_UNMASK);
  if (!f)
    return 0;
  struct fields v = {.device = f->device, .arg0 = (u32)irq};
  return emit(KIND_ENABLE_IRQ, FLAG_IN_UNMASK, &v);
}

static __always_inline int on_mask(u64 vdev, u32 by_ioctl) {
  if (device_refused(vdev))
    return 0;
  struct frame *f = innermost(stack_find());
  struct fields v = {.device = vdev, .aux = by_ioctl};
  return emit(KIND_MASK, f ? f->flag : 0, &v);
}

static __always_inline int on_config_unmask_entry(u64 vdev) {
  if (device_refused(vdev))
    return 0;
  struct stack *s = stack_make();
  struct frame *outer = innermost(s);
  struct fields v = {.device = vdev};
  emit(KIND_CONFIG_UNMASK, outer ? outer->flag : 0, &v);
  if (!outer) /* inside an ioctl the ioctl's own bracket serves */
    push(s, FLAG_IN_CONFIG_UNMASK, &v);
  return 1;
}

static __always_inline int on_config_unmask_exit(void) {
  struct stack *s = stack_find();
  if (!inside(s, FLAG_IN_CONFIG_UNMASK))
    return 0;
  pop(s);
  return 1;
}

#define SET_IRQS_DATA_EVENTFD 4
#define SET_IRQS_ACTION_TRIGGER 32

static __always_inline int on_set_irqs_entry(u64 vdev, u64 flags, u64 index, u64 start, u64 count, u64 data) {
  if ((u32)index > 2) /* INTx, MSI, MSI-X */
    return 0;
  int intx = (u32)index == 0;
  u32 enable = SET_IRQS_DATA_EVENTFD | SET_IRQS_ACTION_TRIGGER;
  u64 trigger = 0;
  if (intx && ((u32)flags & enable) == enable) {
    struct device *before = devices.lookup(&vdev);
    if (before)
      trigger = before->trigger;
    devices.delete(&vdev); /* it is looked at anew: the address of a closed device may serve another one */
  }
  struct device *d = device_of(vdev, 0);
  qemu_judge(!d);
  if (!d)
    return 0;
  struct fields v = {.device = vdev, .arg0 = (u32)flags};
  v.arg1 = (u64)(u16)index | (u64)(u16)start << 16 | (u64)(u32)count << 32;
  if ((u32)flags & SET_IRQS_DATA_EVENTFD && (u32)count) {
    v.aux = read32(data);
    v.link = context_of_fd(v.aux);
    if (intx && v.link) {
      contexts.update(&v.link, &vdev);
      if ((u32)flags & SET_IRQS_ACTION_TRIGGER) {
        if (trigger && trigger != v.link)
          contexts.delete(&trigger);
        d->trigger = v.link;
      }
    }
  }
  push(stack_make(), FLAG_IN_SET_IRQS, &v);
  return emit(KIND_SET_IRQS_ENTRY, 0, &v);
}

static __always_inline int on_set_irqs_exit(u64 ret) {
  return leave(FLAG_IN_SET_IRQS, KIND_SET_IRQS_EXIT, ret);
}

/* A virqfd is a resamplefd only if its handler is the unmask handler: ioeventfds of vfio have one too. */
static __always_inline u64 virqfd_device(u64 virqfd) {
  u64 vdev = read64(virqfd + OFF_virqfd_opaque);
#ifdef FN_vfio_pci_intx_unmask_handler
  if (read64(virqfd + OFF_virqfd_handler) != FN_vfio_pci_intx_unmask_handler)
    return 0;
  return device_refused(vdev) ? 0 : vdev;
#else
  struct device *d = devices.lookup(&vdev);
  return d && !d->refused ? vdev : 0;
#endif
}

static __always_inline int on_virqfd_wakeup(u64 wait, u64 key) {
  u64 virqfd = wait - OFF_virqfd_wait;
  u64 vdev = virqfd_device(virqfd);
  if (!vdev)
    return 0;
  struct fields v = {.device = vdev, .value = (u32)key};
  v.link = read64(virqfd + OFF_virqfd_eventfd);
  if ((u32)key & 0x10)
    contexts.delete(&v.link);
  else
    contexts.update(&v.link, &vdev);
  return emit(KIND_VIRQFD_WAKEUP, 0, &v);
}

static __always_inline int on_virqfd_inject_entry(u64 work) {
  u64 virqfd = work - OFF_virqfd_inject;
  u64 vdev = virqfd_device(virqfd);
  if (!vdev)
    return 0;
  struct fields v = {.device = vdev};
  v.link = read64(virqfd + OFF_virqfd_eventfd);
  push(stack_make(), FLAG_IN_VIRQFD_INJECT, &v);
  return emit(KIND_VIRQFD_INJECT, 0, &v);
}

static __always_inline int on_virqfd_inject_exit(void) {
  struct stack *s = stack_find();
  if (!inside(s, FLAG_IN_VIRQFD_INJECT))
    return 0;
  pop(s);
  return 1;
}

/* ---- eventfd ---- */

static __always_inline int on_eventfd_signal(u64 ctx) {
  struct frame *f = innermost(stack_find());
  struct fields v = {.link = ctx};
  u32 flags = 0;
  if (f && (f->flag & (FLAG_IN_HANDLER | FLAG_IN_SET_IRQS | FLAG_IN_VIRQFD_INJECT | FLAG_IN_CONFIG_UNMASK))) {
    v.device = f->device;
    flags = f->flag;
    contexts.update(&ctx, &v.device);
  } else if (!context_device(ctx)) {
    return 0;
  }
  v.aux = read32(ctx + OFF_eventfd_ctx_id);
  return emit(KIND_EVENTFD_SIGNAL, flags, &v);
}

static __always_inline int on_eventfd_write(u64 file) {
  struct fields v = {.link = read64(file + OFF_file_private_data)};
  if (!context_device(v.link) || process_refused())
    return 0;
  v.aux = read32(v.link + OFF_eventfd_ctx_id);
  return emit(KIND_EVENTFD_WRITE, 0, &v);
}

static __always_inline int on_eventfd_read_entry(u64 iocb) {
  struct fields v = {.link = read64(read64(iocb + OFF_kiocb_ki_filp) + OFF_file_private_data)};
  if (!context_device(v.link) || process_refused())
    return 0;
  v.aux = read32(v.link + OFF_eventfd_ctx_id);
  push(stack_make(), FLAG_IN_EVENTFD_READ, &v);
  return 1;
}

static __always_inline int on_eventfd_read_exit(u64 ret) {
  struct stack *s = stack_find();
  if (s && inside(s, FLAG_IN_EVENTFD_READ) && s->serving == 1)
    s->serving = (s64)ret > 0 ? 2 : 0;
  return leave(FLAG_IN_EVENTFD_READ, KIND_EVENTFD_READ, ret);
}

/* ---- KVM ---- */

static __always_inline int irqfd_fields(u64 irqfd, struct fields *v) {
  v->arg1 = read64(irqfd + OFF_kvm_kernel_irqfd_eventfd);
  u64 *vdev = context_device(v->arg1);
  if (!vdev)
    return 0;
  v->link = irqfd;
  v->vm = read64(irqfd + OFF_kvm_kernel_irqfd_kvm);
  v->arg0 = read32(irqfd + OFF_kvm_kernel_irqfd_gsi);
  if (read64(irqfd + OFF_kvm_kernel_irqfd_resampler))
    v->link2 = read64(irqfd + OFF_kvm_kernel_irqfd_resamplefd);
  return !vm_refused(v->vm);
}

static __always_inline int irqfd_woken(u64 irqfd, u32 key, u32 fallback) {
  struct fields v = {.value = key};
  if (!irqfd_fields(irqfd, &v))
    return 0;
  if (vm_meet(v.vm))
    return 0;
  if (key & 1)
    line_learn(v.vm, v.arg0);
  u64 *vdev = contexts.lookup(&v.arg1);
  if (vdev && v.link2)
    contexts.update(&v.link2, vdev);
  struct stack *s = stack_find();
  struct frame *f = innermost(s);
  if (f)
    v.device = f->device;
  emit(KIND_IRQFD_WAKEUP, fallback | (f ? f->flag : 0), &v);
  if (key & 0x10) {
    contexts.delete(&v.arg1);
  } else if (!v.link2 && s) {
    s->pulse_vm = v.vm;
    s->pulse_gsi = v.arg0;
  }
  return 1;
}

static __always_inline int on_irqfd_wakeup(u64 wait, u64 key) {
  return irqfd_woken(wait - OFF_kvm_kernel_irqfd_wait, key, 0);
}

static __always_inline int irqfd_injecting(u64 irqfd, u32 fallback) {
  struct fields v = {};
  if (irqfd_fields(irqfd, &v))
    return emit(KIND_IRQFD_INJECT, fallback, &v);
  return 0;
}

static __always_inline int on_irqfd_inject(u64 work) {
  return irqfd_injecting(work - OFF_kvm_kernel_irqfd_inject, 0);
}

#if defined(OFF_work_struct_func) && defined(FN_irqfd_inject) && defined(FN_virqfd_inject)
/* Instead of irqfd_wakeup: workqueue:workqueue_queue_work(req_cpu, pwq, work). */
static __always_inline int on_queue_work_irqfd(u64 work) {
  if (read64(work + OFF_work_struct_func) != FN_irqfd_inject)
    return 0;
  return irqfd_woken(work - OFF_kvm_kernel_irqfd_inject, 1, FLAG_FALLBACK);
}

/* Instead of irqfd_inject and virqfd_inject: workqueue:workqueue_execute_start(work). */
static __always_inline int on_start_work_irqfd(u64 work) {
  if (read64(work + OFF_work_struct_func) != FN_irqfd_inject)
    return 0;
  return irqfd_injecting(work - OFF_kvm_kernel_irqfd_inject, FLAG_FALLBACK);
}

static __always_inline int on_start_work_virqfd(u64 work) {
  if (read64(work + OFF_work_struct_func) != FN_virqfd_inject)
    return 0;
  return on_virqfd_inject_entry(work);
}
#endif

/* A line becomes known by its irqfd, or as the one that QEMU raises right after it read a known eventfd. */
static __always_inline int line_traced(u64 vm, u64 gsi, u64 source, u64 level) {
  if (line_known(vm, gsi))
    return !vm_refused(vm);
  struct stack *s = stack_find();
  if (!s || s->serving != 2 || source || !level || vm_meet(vm))
    return 0;
  line_learn(vm, gsi);
  return 1;
}

static __always_inline int on_kvm_set_irq_entry(u64 vm, u64 source, u64 gsi, u64 level) {
  gsi = (u32)gsi;
  source = (u32)source;
  level = (u32)level;
  int traced = line_traced(vm, gsi, source, level);
  struct stack *s = traced ? stack_make() : stack_find();
  if (s && s->serving == 2 && level)
    s->serving = 0;
  if (!traced)
    return 0;
  struct frame *outer = innermost(s);
  struct fields v = {.vm = vm, .arg0 = gsi, .arg1 = source, .value = level, .aux = level};
  u32 flags = outer ? outer->flag : 0;
  push(s, FLAG_IN_KVM_SET_IRQ, &v);
  v.aux = 0;
  return emit(KIND_KVM_SET_IRQ, flags, &v);
}

static __always_inline int on_kvm_set_irq_exit(u64 ret) {
  return leave(FLAG_IN_KVM_SET_IRQ, KIND_KVM_SET_IRQ_EXIT, ret);
}

/* Instead of kvm_set_irq: kvm:kvm_set_irq(gsi, level, source), which does not name the VM. */
static __always_inline int on_tp_kvm_set_irq(u64 gsi, u64 level, u64 source) {
  u32 known = gsi;
  if (!gsis.lookup(&known))
    return 0;
  struct fields v = {.arg0 = known, .value = (u32)level, .arg1 = (u32)source};
  return emit(KIND_KVM_SET_IRQ, FLAG_FALLBACK, &v);
}

static __always_inline int on_kvm_ack(u64 vm, u64 irqchip, u64 pin) {
  if (!line_known(vm, (u32)pin) || vm_refused(vm))
    return 0;
  struct fields v = {.vm = vm, .arg0 = (u32)pin, .arg1 = (u32)irqchip};
  return emit(KIND_KVM_ACK, 0, &v);
}

/* Instead of kvm_notify_acked_irq: kvm:kvm_ack_irq(irqchip, pin), in a vCPU thread of the VM. */
static __always_inline int on_tp_kvm_ack_irq(u64 irqchip, u64 pin) {
  u32 tgid = bpf_get_current_pid_tgid() >> 32;
  u64 *vm = vm_of.lookup(&tgid);
  if (!vm || !line_known(*vm, (u32)pin) || process_refused())
    return 0;
  struct fields v = {.vm = *vm, .arg0 = (u32)pin, .arg1 = (u32)irqchip};
  return emit(KIND_KVM_ACK, FLAG_FALLBACK, &v);
}

static __always_inline int on_resampler_ack(u64 kian) {
  u64 resampler = kian - OFF_kvm_kernel_irqfd_resampler_notifier;
  struct fields v = {.link = resampler};
  v.vm = read64(resampler + OFF_kvm_kernel_irqfd_resampler_kvm);
  v.arg0 = read32(kian + OFF_kvm_irq_ack_notifier_gsi);
  if (line_known(v.vm, v.arg0) && !vm_refused(v.vm))
    return emit(KIND_RESAMPLER_ACK, 0, &v);
  return 0;
}

static __always_inline int on_resampler_notify(u64 vm, u64 irqchip, u64 pin) {
  if (!line_known(vm, (u32)pin) || vm_refused(vm))
    return 0;
  struct fields v = {.vm = vm, .arg0 = (u32)pin, .arg1 = (u32)irqchip};
  return emit(KIND_RESAMPLER_NOTIFY, 0, &v);
}

#define IRQFD_DEASSIGN 1 /* KVM_IRQFD_FLAG_DEASSIGN */
/* struct kvm_irqfd { fd, gsi, flags, resamplefd } of include/uapi/linux/kvm.h, already copied into the kernel. */
static __always_inline int on_kvm_irqfd_entry(u64 vm, u64 args) {
  struct fields v = {.vm = vm};
  v.aux = read32(args);
  v.arg0 = read32(args + 4);
  v.arg1 = read32(args + 8);
  v.link = context_of_fd(v.aux);
  u64 *vdev = v.link ? context_device(v.link) : 0;
  if (!vdev || vm_meet(vm))
    return 0;
  if (v.arg1 & 2) {
    v.link2 = context_of_fd(read32(args + 12));
    if (v.link2)
      contexts.update(&v.link2, vdev);
  }
  if (!(v.arg1 & IRQFD_DEASSIGN))
    line_assign(vm, v.arg0);
  else if (!line_known(vm, v.arg0))
    line_learn(vm, v.arg0);
  push(stack_make(), FLAG_IN_KVM_IRQFD, &v);
  return emit(KIND_KVM_IRQFD_ENTRY, 0, &v);
}

static __always_inline int on_kvm_irqfd_exit(u64 ret) {
  struct frame *f = inside(stack_find(), FLAG_IN_KVM_IRQFD);
  u32 failed = (s32)ret != 0;
  if (f && (f->arg1 & IRQFD_DEASSIGN) != failed)
    line_release(f->vm, f->arg0);
  return leave(FLAG_IN_KVM_IRQFD, KIND_KVM_IRQFD_EXIT, ret);
}

/* struct kvm_irq_level { irq, level }, already copied into the kernel. */
static __always_inline int on_kvm_irq_line(u64 vm, u64 args) {
  struct fields v = {.vm = vm, .arg0 = read32(args), .value = read32(args + 4)};
  if (line_known(vm, v.arg0) && !vm_refused(vm))
    return emit(KIND_KVM_IRQ_LINE, 0, &v);
  return 0;
}

/* ---- KVM's own tracepoints, inside a traced delivery ---- */

/* The delivery that is under way in this task: a kvm_set_irq, or the pulse of an irqfd without resampler. */
static __always_inline int delivery(struct fields *v, u32 *flags) {
  struct stack *s = stack_find();
  struct frame *f = innermost(s);
  if (f && f->flag == FLAG_IN_KVM_SET_IRQ) {
    v->vm = f->vm;
    v->arg0 = f->arg0;
  } else if (s && s->pulse_vm) {
    v->vm = s->pulse_vm;
    v->arg0 = s->pulse_gsi;
    if (f)
      v->device = f->device;
  } else {
    return 0;
  }
  *flags = f ? f->flag : 0;
  return 1;
}

static __always_inline void vector_learn(u64 vm, u32 vector) {
  u64 *tgid = vms.lookup(&vm);
  if (!tgid)
    return;
  struct vector_key k = {.tgid = *tgid, .vector = vector};
  u64 one = 1;
  vectors.update(&k, &one);
}

static __always_inline int on_tp_apic_accept(u64 apic, u64 vector) {
  struct fields v = {.value = (u8)vector, .aux = (u32)apic};
  u32 flags = 0;
  if (!delivery(&v, &flags))
    return 0;
  vector_learn(v.vm, (u8)vector);
  return emit(KIND_APIC_ACCEPT, flags, &v);
}

static __always_inline int on_tp_ioapic_set_irq(u64 entry, u64 pin, u64 coalesced) {
  struct fields v = {};
  u32 flags = 0;
  if (!delivery(&v, &flags))
    return 0;
  v.arg0 = (u32)pin;
  v.arg1 = entry;
  v.value = (u8)coalesced;
  return emit(KIND_IOAPIC_SET_IRQ, flags, &v);
}

static __always_inline int on_tp_pic_set_irq(u64 chip, u64 pin, u64 imr, u64 coalesced) {
  struct fields v = {};
  u32 flags = 0;
  if (!delivery(&v, &flags))
    return 0;
  v.arg0 = (u8)pin;
  v.arg1 = (u8)chip;
  v.aux = (u8)imr >> ((u8)pin & 7) & 1;
  v.value = (u8)coalesced;
  return emit(KIND_PIC_SET_IRQ, flags, &v);
}

static __always_inline int on_tp_msi_set_irq(u64 address, u64 data) {
  struct fields v = {};
  u32 flags = 0;
  if (!delivery(&v, &flags))
    return 0;
  v.arg0 = address;
  v.arg1 = data;
  v.value = data & 0xff;
  return emit(KIND_MSI_SET_IRQ, flags, &v);
}

static __always_inline int on_tp_kvm_eoi(u64 vector) {
  struct vector_key k = {.tgid = bpf_get_current_pid_tgid() >> 32, .vector = (u32)vector};
  if (!vectors.lookup(&k) || process_refused())
    return 0;
  struct fields v = {.value = (s32)vector};
  return emit(KIND_KVM_EOI, 0, &v);
}

static __always_inline int on_tp_userspace_exit(u64 reason) {
  if ((u32)reason != 26) /* KVM_EXIT_IOAPIC_EOI */
    return 0;
  u32 tgid = bpf_get_current_pid_tgid() >> 32;
  if (!vm_of.lookup(&tgid) || process_refused())
    return 0;
  struct fields v = {.value = 26};
  return emit(KIND_USERSPACE_EXIT, 0, &v);
}

/* ---- QEMU ---- */

/* Which of the known QEMU binaries this program is attached to; the loader patches the number in. */
static __always_inline int this_slot(void) {
  u64 slot;
  asm volatile("%0 = 0x1badcafe" : "=r"(slot));
  return slot;
}

static __always_inline struct binary *this_binary(void) {
  int key = this_slot();
  return binaries.lookup(&key);
}

static __always_inline int qemu_event(u32 kind, u64 device) {
  if (qemu_refused(device))
    return 0;
  struct stack *s = stack_make();
  if (s)
    s->qemu = device;
  struct fields v = {.device = device};
  return emit(kind, 0, &v);
}

/* For functions that get a VFIOPCIDevice. */
static __always_inline int qemu_pci_event(u64 pci_device, u32 kind) {
  struct binary *b = this_binary();
  return b ? qemu_event(kind, pci_device + b->device) : 0;
}

static __always_inline int on_qemu_interrupt(u64 pci_device) {
  struct binary *b = this_binary();
  if (!b || qemu_refused(pci_device + b->device))
    return 0;
  struct fields v = {.device = pci_device + b->device};
#if COUNT_BAR_ACCESS
  struct qemu_key key = {.device = v.device, .tgid = bpf_get_current_pid_tgid() >> 32};
  struct bar_count *c = bars.lookup(&key);
  if (c) {
    struct fields n = {.device = v.device, .arg0 = c->reads, .arg1 = c->writes};
    c->reads = 0;
    c->writes = 0;
    c->fresh = 1;
    if (n.arg0 | n.arg1)
      emit(KIND_QEMU_REGION_COUNT, 0, &n);
  }
#endif
  struct stack *s = stack_make();
  if (s)
    s->serving = 1;
  return emit(KIND_QEMU_INTERRUPT, 0, &v);
}

static __always_inline int on_qemu_eoi(u64 device) {
  struct binary *b = this_binary();
  if (!b || (b->pending && !read_user8(device + b->pending)))
    return 0;
  return qemu_event(KIND_QEMU_EOI, device);
}

static __always_inline int on_qemu_region(u64 region, u64 offset, u64 data, u32 size, u32 write) {
  struct fields v = {.link = region, .arg0 = offset, .arg1 = data, .value = size};
  v.device = read_user64(region);
  if (qemu_refused(v.device))
    return 0;
  v.aux = read_user8(region + 0x30); /* VFIORegion.nr, QEMU 4.0 to 11.1 */
#if COUNT_BAR_ACCESS
  u64 tgid = bpf_get_current_pid_tgid() >> 32;
  struct offset_key at = {.device = v.device, .region = region, .offset = offset, .tgid = tgid};
  at.number = v.aux | write << 31;
  u64 zero = 0;
  u64 *n = offsets.lookup_or_try_init(&at, &zero);
  if (n)
    lock_xadd(n, 1);
  struct qemu_key key = {.device = v.device, .tgid = tgid};
  struct bar_count made = {.fresh = 1};
  struct bar_count *c = bars.lookup_or_try_init(&key, &made);
  if (!c)
    return 0;
  if (write)
    lock_xadd(&c->writes, 1);
  else
    lock_xadd(&c->reads, 1);
  if (!c->fresh)
    return 0;
  c->fresh = 0;
#endif
  return emit(write ? KIND_QEMU_REGION_WRITE : KIND_QEMU_REGION_READ, 0, &v);
}

static __always_inline int on_qemu_region_read(u64 region, u64 offset, u64 size) {
  return on_qemu_region(region, offset, 0, size, 0);
}

static __always_inline int on_qemu_region_write(u64 region, u64 offset, u64 data, u64 size) {
  return on_qemu_region(region, offset, data, size, 1);
}

static __always_inline int on_qemu_mmaps(u64 region, u64 enabled) {
  struct fields v = {.link = region, .value = (u8)enabled};
  if (!read_user64(region + 0x10)) /* VFIORegion.mem, as .nr: the device has no such BAR, and QEMU does nothing */
    return 0;
  v.device = read_user64(region);
  if (qemu_refused(v.device))
    return 0;
  v.aux = read_user8(region + 0x30);
  return emit(KIND_QEMU_MMAPS, 0, &v);
}

static __always_inline int on_qemu_resample_notify(u64 gsi) {
  u32 tgid = bpf_get_current_pid_tgid() >> 32;
  u64 *vm = vm_of.lookup(&tgid);
  if (!vm || !line_known(*vm, (u32)gsi) || process_refused())
    return 0;
  struct fields v = {.arg0 = (u32)gsi, .vm = *vm};
  return emit(KIND_QEMU_RESAMPLE_NOTIFY, 0, &v);
}
