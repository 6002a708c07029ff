# make           build the executables
# make demo      the main job on a scratch directory, command by command
# make check     every test; installs what it needs
# make bench     figures, as ratios against what one would use instead
# make install   DESTDIR= PREFIX=/usr/local; SMDIR=/opt/xensource/sm puts DRIVERS where xapi looks, and
#                PLUGINDIR=/etc/xapi.d/plugins the plug-ins by which other hosts pause a disk and users merge images;
#                V3DIR=/usr/libexec/xapi-storage-script the plug-ins of SMAPIv3 for SRs of V3TYPES (docs/smapiv3.md)
# make uninstall the same variables; takes away what install put there, and gives back what stood there
# make deb       a Debian package of what install puts there, in target/package
# make rpm       two packages for hosts with rpm: the same, and one that gives xapi the drivers (docs/install.md)
# make torture   the long siblings of the crash and fault tests, and of what the guests only sample
# make coverage  which lines of src the tests run, in percent for each directory; TESTS= of tests/*.rs (most of them)
# make fuzz      SECONDS=60 for each of TARGETS= (all): inputs that a parser does not survive
# make generated man pages from the command-line definitions

PREFIX ?= /usr/local
DESTDIR ?=
# Where xapi looks for drivers. Empty: xapi is left alone.
SMDIR ?=
# Where xapi looks for host plug-ins. Those that are there are kept as tapdisk-pause.stock and so on.
PLUGINDIR ?=
PLUGINS := tapdisk-pause coalesce-leaf on-slave lvhd-thin trim
# Where xapi-storage-script looks for plug-ins of SMAPIv3, and the SR types that get one. Their names there begin with sm-, so no SR
# type has two doors. Not zfs, which no test ran with the kernel's ZFS.
V3DIR ?=
V3TYPES ?= file ext nfs smb xfs largeblock cephfs glusterfs moosefs
# Where zsh looks for completions, below PREFIX/share: Debian's zsh takes those of packages from zsh/vendor-completions.
ZSHDIR ?= zsh/site-functions
# Which of them xapi gets. Not LVMoISCSISR and LVMoHBASR, whose SRs no test ran in a pool, nor ZFSSR, which no test ran with the
# kernel's ZFS.
DRIVERS ?= $(filter-out LVMoISCSISR LVMoHBASR ZFSSR,$(ALL_DRIVERS))

HOST := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
# The same place whatever CARGO_TARGET_DIR says, because scripts look here.
export CARGO_TARGET_DIR := $(CURDIR)/target
BIN := $(CARGO_TARGET_DIR)/$(HOST)/release
export BIN

# The drivers are links to sm: one file on a small root disk, and xapi follows links.
ALL_DRIVERS := $(shell sed -n 's/.*executable: "\(.*\)",.*/\1/p' src/sr/*.rs)

.PHONY: all release demo check tests-built lint bench install uninstall deb rpm torture coverage fuzz generated deps deps-build clean

all: release

# Static: they run in a dom0 whose glibc is older than the one they were built with.
release: deps-build
	RUSTFLAGS='-C target-feature=+crt-static' cargo build --locked --release --bin sm --target $(HOST)
	for d in $(ALL_DRIVERS); do ln -sf sm "$(BIN)/$$d" || exit; done

demo: deps-build release
	tests/sh/demo.sh

# The link of the release takes one core for minutes: what has another directory is built beside it.
check: deps
	$(MAKE) -j2 --output-sync=target lint tests-built release
	tests/check

tests-built: lint
	cargo test --locked --quiet --no-run

lint:
	cargo fmt --check
	cargo clippy --locked --all-targets --quiet -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps --document-private-items --quiet
	tests/msrv

bench: deps release
	@tests/deps bench
	benches/run

torture: deps release
	cargo test --locked --release --test '*' -- --ignored
	LONG=y cargo test --locked --release --test backup --test backup_faults --test layout_apply -- killed failure
	tests/guest/suites --long
	fuzz/run 60

TESTS ?=
coverage: deps
	tests/coverage $(TESTS)

SECONDS ?= 60
TARGETS ?=
fuzz:
	@tests/deps build fuzz
	fuzz/run $(SECONDS) $(TARGETS)

generated:
	UPDATE_GENERATED=1 cargo test --locked --quiet --test generated

COMPLETIONS := sm.bash:bash-completion/completions/sm _sm:$(ZSHDIR)/_sm sm.fish:fish/vendor_completions.d/sm.fish
UNITS = $(PREFIX)/lib/systemd/system
NAME := $(shell sed -n 's/^name = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
DOC = $(PREFIX)/share/doc/$(NAME)
unknown = $(filter-out $(ALL_DRIVERS),$(DRIVERS))

install: release
	@[ -z "$(unknown)" ] || { echo "DRIVERS: there is no $(unknown), only $(ALL_DRIVERS)"; exit 1; }
	install -d $(DESTDIR)$(PREFIX)/sbin $(DESTDIR)$(PREFIX)/share/man/man8
	install -m 755 "$(BIN)/sm" $(DESTDIR)$(PREFIX)/sbin/sm
	for d in $(ALL_DRIVERS); do ln -sf sm $(DESTDIR)$(PREFIX)/sbin/$$d || exit; done
	[ -z "$(SMDIR)" ] || install -d $(DESTDIR)$(SMDIR)
	[ -z "$(SMDIR)$(V3DIR)" ] || support/observer-entry $(DESTDIR)$(PREFIX)/sbin/sm
	[ -z "$(SMDIR)" ] || support/stand-in put $(PREFIX)/sbin/sm $(addprefix $(DESTDIR)$(SMDIR)/,$(DRIVERS))
	[ -z "$(PLUGINDIR)" ] || install -d $(DESTDIR)$(PLUGINDIR)
	[ -z "$(PLUGINDIR)" ] || support/stand-in put $(PREFIX)/sbin/sm $(addprefix $(DESTDIR)$(PLUGINDIR)/,$(PLUGINS))
	[ -z "$(V3DIR)" ] || support/smapiv3 put $(PREFIX)/sbin/sm $(DESTDIR)$(V3DIR) $(V3TYPES)
	install -m 644 man/*.8 $(DESTDIR)$(PREFIX)/share/man/man8
	install -d $(DESTDIR)$(UNITS)
	for u in $(notdir $(wildcard support/systemd/*)); do \
	    sed 's|@sbin@|$(PREFIX)/sbin|' support/systemd/$$u > $(DESTDIR)$(UNITS)/$$u || exit; done
	for c in $(COMPLETIONS); do install -Dm 644 completions/$${c%%:*} $(DESTDIR)$(PREFIX)/share/$${c#*:} || exit; done
	install -d $(DESTDIR)$(DOC)/docs
	install -m 644 README.md CHANGELOG.md LICENSE-APACHE LICENSE-MIT $(DESTDIR)$(DOC)
	install -m 644 docs/*.md $(DESTDIR)$(DOC)/docs

# Files that are there and not ours stay.
uninstall:
	[ -z "$(SMDIR)" ] || support/stand-in give-back $(PREFIX)/sbin/sm $(addprefix $(DESTDIR)$(SMDIR)/,$(ALL_DRIVERS))
	[ -z "$(PLUGINDIR)" ] || support/stand-in give-back $(PREFIX)/sbin/sm $(addprefix $(DESTDIR)$(PLUGINDIR)/,$(PLUGINS))
	[ -z "$(V3DIR)" ] || support/smapiv3 take-away $(PREFIX)/sbin/sm $(DESTDIR)$(V3DIR)
	rm -f $(DESTDIR)$(PREFIX)/sbin/sm $(addprefix $(DESTDIR)$(PREFIX)/sbin/,$(ALL_DRIVERS))
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/share/man/man8/,$(notdir $(wildcard man/*.8)))
	rm -f $(addprefix $(DESTDIR)$(UNITS)/,$(notdir $(wildcard support/systemd/*)))
	for c in $(COMPLETIONS); do rm -f $(DESTDIR)$(PREFIX)/share/$${c#*:} || exit; done
	rm -rf $(DESTDIR)$(DOC)

deb rpm: release
	@tests/deps build $@
	@support/package/$@/build

deps-build:
	@tests/deps build

deps:
	@tests/deps build check

clean:
	cargo clean
