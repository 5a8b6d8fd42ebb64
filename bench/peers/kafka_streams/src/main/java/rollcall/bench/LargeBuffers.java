package rollcall.bench;

import java.util.Map;
import org.apache.kafka.streams.state.RocksDBConfigSetter;
import org.rocksdb.BlockBasedTableConfig;
import org.rocksdb.BloomFilter;
import org.rocksdb.LRUCache;
import org.rocksdb.Options;

/** RocksDB for writing much: memtables of 64 MB and one block cache of 512 MB for all stores of the process. */
public final class LargeBuffers implements RocksDBConfigSetter {
    private static final LRUCache CACHE = new LRUCache(512L * 1024 * 1024);

    @Override
    public void setConfig(String store, Options options, Map<String, Object> configs) {
        BlockBasedTableConfig table = (BlockBasedTableConfig) options.tableFormatConfig();
        table.setBlockCache(CACHE);
        table.setFilterPolicy(new BloomFilter(10, false));
        options.setTableFormatConfig(table);
        options.setWriteBufferSize(64L * 1024 * 1024);
        options.setMaxWriteBufferNumber(3);
    }

    @Override
    public void close(String store, Options options) {}
}
